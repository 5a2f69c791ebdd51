"""Keys and identities of one platform that would stop all others, or cost them their budget: noticed where they arrive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from client.secagg.enrolment import Enrolled
from shared.base.errors import ProtocolError
from shared.secagg.codec import decode, encode
from shared.secagg.messages import Deal
from shared.secagg.roster import Advert, RosterEntry
from strategies.secure_sum.protocol import Enrolment
from tests.shared.secagg.conftest import QUESTION, stream

Make = Callable[..., Any]


class TestWorthlessKeys:
    """A public key of small order makes the common key known to all, and used to fail only once every platform had paid."""

    @pytest.mark.parametrize("which", ["masks", "sealing"])
    @pytest.mark.parametrize("number", [0, 1, 2**255 - 20, 2**255 - 19, 1 << 255])
    def test_they_cannot_be_had_by_anyone(self, fresh: Make, which: str, number: int) -> None:
        made = fresh(3)
        keys = made.state(2).advert.keys
        weak = number.to_bytes(32, "little")
        with pytest.raises(ProtocolError, match=r"'p02'.*small order"):
            replace(keys, **{which: keys.masks[:32] + weak if which == "masks" else weak})

    @pytest.mark.parametrize("which", ["masks", "sealing"])
    def test_they_are_refused_where_they_arrive(self, fresh: Make, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
        """Made by a platform without this check, they reach neither the roster nor a neighbour; both say whose they are."""
        made = fresh(3)
        state = made.state(2)
        with monkeypatch.context() as patched:
            patched.setattr("shared.secagg.roster.small_order", lambda keys: [])
            keys = replace(state.advert.keys, **{which: bytes(len(getattr(state.advert.keys, which)))})
            advert = replace(state.advert, keys=keys, signature=made.identities[2].sign(keys.signed))
            made.coordinator.adverts = (*made.coordinator.adverts[:2], advert)
            entries = (*made.coordinator.roster.entries[:2], RosterEntry.of(advert))
            made.coordinator.roster = replace(made.coordinator.roster, entries=entries)
            arriving, dealing = encode(advert), encode(made.coordinator.deal_for(0))
        with pytest.raises(ProtocolError, match=r"'p02'.*small order"):
            decode(Advert, arriving)
        with pytest.raises(ProtocolError, match=r"'p02'.*small order"):
            decode(Deal, dealing)

    def test_every_key_of_a_round_is_there_before_the_round_is_made(self, world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """`Active.mask` derives nothing: whatever the keys of others are, it fails before the caller pays."""
        made = world(3)
        request = made.round().mask_for(0)
        active = made.state(0).open(request)
        ready = active.ready(request, QUESTION)

        def fail(*_: Any, **__: Any) -> bytes:
            raise ProtocolError("a public key that is none")

        monkeypatch.setattr("client.secagg.participant.agree", fail)
        monkeypatch.setattr("client.secagg.participant.derive", fail)
        active.mask(ready, made.vectors[0], identity=made.identities[0])
        with pytest.raises(ProtocolError, match="public key"):
            active.ready(request, QUESTION)


class TestIdentities:
    def test_one_other_than_the_approved_is_left_out_by_the_coordinator(self, fresh: Make) -> None:
        made, other = fresh(3), fresh(3, seed=1)
        enrolment = Enrolment(made.terms, approved=made.peers)
        with pytest.raises(ProtocolError, match="'p02' was approved with"):
            enrolment.add(other.state(2).advert, platform="p02")
        for number in range(3):
            enrolment.add(made.state(number).advert, platform=f"p{number:02d}")
        assert enrolment.close().roster == made.coordinator.roster
        with pytest.raises(ProtocolError, match="'p02' was approved with none"):
            Enrolment(made.terms, approved={}).add(made.state(2).advert, platform="p02")

    def test_one_identity_of_two_platforms_does_not_stop_the_others(self, fresh: Make) -> None:
        made = fresh(2)
        twin = Enrolled.enrol(made.terms, platform="p02", identity=made.identities[1], entropy=stream("twin"))
        enrolment = Enrolment(made.terms)
        for advert, name in ((made.state(0).advert, "p00"), (made.state(1).advert, "p01")):
            enrolment.add(advert, platform=name)
        with pytest.raises(ProtocolError, match="'p02' signs with the identity of 'p01'"):
            enrolment.add(twin.advert, platform="p02")
        assert len(enrolment.close().roster.entries) == 2

    def test_a_platform_names_whose_identity_is_another(self, fresh: Make) -> None:
        made, other = fresh(3), fresh(3, seed=1)
        with pytest.raises(ProtocolError, match="'p02' has identity"):
            made.state(0).deal(made.coordinator.deal_for(0), peers={**made.peers, "p02": other.peers["p02"]}, entropy=bytes)

    def test_what_is_declared_is_signed_for_one_run(self, fresh: Make) -> None:
        made, later = fresh(3), fresh(3, run="later")
        good = made.coordinator.deal_for(0)
        line = good.roster.entries[2]
        old = RosterEntry.of(later.state(2).advert)
        for bad in (replace(line, declared=b"x"), old):
            roster = replace(good.roster, entries=(*good.roster.entries[:2], bad))
            with pytest.raises(ProtocolError, match="'p02'"):
                made.state(0).deal(replace(good, roster=roster), peers=made.peers, entropy=bytes)

    def test_nor_does_a_line_of_another_run_count_where_no_keys_come_with_it(self, ring: None, fresh: Make) -> None:
        """On a ring a platform gets only its neighbours' keys; of the others it has the lines alone."""
        made, later = (fresh(12, threshold=10 / 12, rounds=1, run=run) for run in ("run", "later"))
        tried = 0
        for number in range(1, 12):
            old = RosterEntry.of(later.state(number).advert)
            entries = tuple(old if at == number else one for at, one in enumerate(made.coordinator.roster.entries))
            roster = replace(made.coordinator.roster, entries=entries)
            near = roster.neighbours(0)
            if number not in near:
                keys = tuple(made.coordinator.adverts[other].keys for other in near)
                with pytest.raises(ProtocolError, match=rf"'p{number:02d}'.*not signed"):
                    made.state(0).deal(Deal(roster=roster, keys=keys), peers=made.peers, entropy=bytes)
                tried += 1
        assert tried
