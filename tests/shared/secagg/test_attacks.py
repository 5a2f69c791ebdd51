"""Servers that lie. Each attack is played twice: against the protocol, where it gains nothing, and against the protocol with
the check that stops it taken out, where it lays one platform's vector bare. So the tests cannot pass by accident."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client.secagg.enrolment import Dealing, Enrolled
from client.secagg.participant import Active
from shared.base.errors import OutOfOrder, ProtocolError
from shared.secagg.bit_packing import unpack_words
from shared.secagg.identity import Identity, digest_of
from shared.secagg.masks import MaskFrame, add_masks, agree, derive
from shared.secagg.messages import Confirm, Deal, Mask, Masked, Parcel, Signed, Unmask, Unmasked
from shared.secagg.roster import Keys, Roster, RosterEntry, SumSession
from shared.secagg.shamir import WORDS, combine, valid, weights_at_zero
from tests.shared.secagg.conftest import QUESTION, stream

Make = Callable[..., Any]


class Server:
    """A coordinator that asks what it likes, and its accomplices; keeps all that it hears."""

    def __init__(self, world: Any, accomplices: Collection[int] = ()) -> None:
        self.world, self.accomplices = world, set(accomplices)
        self.roster: Roster = world.coordinator.roster
        self.present = world.coordinator.session.present
        self.masked: dict[int, tuple[Masked, Mask]] = {}
        self.questions: dict[int, bytes] = {}
        self.consents: dict[bytes, dict[int, bytes]] = {}
        self.confirmed: dict[tuple[int, ...], dict[int, bytes]] = {}
        # (owner, "seed" or "key") -> holder -> share
        self.shares: dict[tuple[int, str], dict[int, np.ndarray]] = {}
        self.refused: list[ProtocolError] = []

    # What it may ask. A refusal is noted, and the attack goes on.

    def ask_mask(
        self,
        number: int,
        *,
        present: tuple[int, ...] | None = None,
        withheld: Collection[int] = (),
        question: bytes = QUESTION,
        **over: Any,
    ) -> bool:
        work = self.world.round(over.pop("round", 1))
        request = work.mask_for(number)
        parcels = tuple(parcel for parcel in request.parcels if parcel.sender not in withheld)
        request = replace(request, present=present or self.present, parcels=parcels, **over)
        answer = self._try(lambda: self.world.ask_mask(number, request, question=question))
        if answer is not None:
            self.masked[number], self.questions[number] = (answer, request), question
            session = SumSession(roster=self.roster, present=request.present)
            self.consents.setdefault(session.digest, {})[number] = answer.consent
        return answer is not None

    def ask_confirm(self, number: int, survivors: Iterable[int], round_: int = 1) -> bool:
        wanted = tuple(sorted(survivors))
        answer = self._try(lambda: self.world.ask_confirm(number, Confirm(round=round_, survivors=wanted)))
        if answer is not None:
            self.confirmed.setdefault(wanted, {})[number] = answer.signature
        return answer is not None

    def ask_unmask(
        self, number: int, survivors: Iterable[int], *, present: tuple[int, ...] | None = None, round_: int = 1
    ) -> bool:
        """With every signature that it has, and those that accomplices make for it."""
        wanted = tuple(sorted(survivors))
        session = SumSession(roster=self.roster, present=present or self.present)
        request = Unmask(
            round=round_,
            survivors=wanted,
            consents=self._signed(self.consents.get(session.digest, {}), session.consent),
            confirmations=self._signed(self.confirmed.get(wanted, {}), session.survivors(round_, wanted)),
        )
        answer = self._try(lambda: self.world.ask_unmask(number, request))
        if answer is not None:
            self._hear(number, wanted, answer, self.masked[number][1].present)
        return answer is not None

    def _signed(self, known: dict[int, bytes], digest: bytes) -> tuple[Signed, ...]:
        made = {number: self.world.identities[number].sign(digest) for number in self.accomplices}
        return tuple(Signed(number=number, signature=signature) for number, signature in sorted({**known, **made}.items()))

    def _try(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except ProtocolError as error:
            self.refused.append(error)
            return None

    def _hear(self, holder: int, survivors: tuple[int, ...], answer: Unmasked, present: tuple[int, ...]) -> None:
        held = [other for other in self.roster.holders(holder) if other in set(present)]
        for owner, share in zip(held, np.frombuffer(answer.shares, "<u4").reshape(-1, WORDS), strict=True):
            kind = "seed" if owner in survivors else "key"
            self.shares.setdefault((owner, kind), {})[holder] = share

    # What it can make of what it heard.

    def secret(self, owner: int, kind: str, round_: int = 1) -> bytes | None:
        """A platform's secret, if enough shares of it are known; accomplices give theirs, and their own secrets."""
        if owner in self.accomplices:
            return self._own(owner, kind, round_)
        known = {**self._held(owner, kind, round_), **self.shares.get((owner, kind), {})}
        known = {holder: share for holder, share in known.items() if valid(share)}
        needed = self.roster.quorum.shares
        if len(known) < needed:
            return None
        some = sorted(known)[:needed]
        points = [self.roster.holders(owner).index(holder) + 1 for holder in some]
        shares = np.stack([known[holder] for holder in some])[:, None]
        return combine(shares.astype(np.uint32), weights_at_zero(points))[0].tobytes()

    def _held(self, owner: int, kind: str, round_: int) -> dict[int, np.ndarray]:
        found = {}
        for holder in self.accomplices & set(self.roster.holders(owner)):
            state = self.world.state(holder)
            if isinstance(state, Active):
                at = self.roster.holders(holder).index(owner)
                found[holder] = state._shares()[at, round_ - state.first, int(kind == "seed")]
        return found

    def _own(self, owner: int, kind: str, round_: int) -> bytes:
        state = self.world.state(owner)
        secrets, first = (state.secrets, state.first) if isinstance(state, Active) else (state.enrolled.secrets, 1)
        pair = secrets[64 * (round_ - first) :][:64]
        return pair[32:] if kind == "seed" else pair[:32]

    def bared(self) -> list[set[int]]:
        """Sets of honest platforms whose sum it now knows: by taking off every mask whose key it has, as far as it goes."""
        honest = [number for number in self.masked if number not in self.accomplices]
        keys = {number: self.secret(number, "key") for number in self.roster_numbers()}
        left: dict[int, set[frozenset[int]]] = {}
        vectors: dict[int, np.ndarray] = {}
        for number in honest:
            answer, request = self.masked[number]
            session = SumSession(roster=self.roster, present=request.present)
            question = self.questions.get(number, QUESTION)
            frame = MaskFrame(round=request.round, length=request.length, bits=request.bits, question=question)
            total = unpack_words(answer.words, length=request.length, bits=request.bits).copy()
            seed = self.secret(number, "seed", request.round)
            # Each mask that stays is named by its key's two ends and its session.
            left[number] = set() if seed else {frozenset((number,))}
            if seed:
                add_masks(total, [(derive(seed, salt=session.digest, info=frame.self(number)), True)])
            for other in session.partners(number):
                own, theirs = keys[number], keys[other]
                if own is None and theirs is None:
                    # ... and what it is for.
                    left[number].add(frozenset((number, other, hash((session.digest, frame.pair(number, other))) | 1 << 70)))
                    continue
                ends = (own, other) if own is not None else (theirs, number)
                assert ends[0] is not None
                public = self.world.coordinator.adverts[ends[1]].keys.mask(request.round)
                common = agree(
                    X25519PrivateKey.from_private_bytes(ends[0]), public, salt=session.digest, info=frame.pair(number, other)
                )
                add_masks(total, [(common, number < other)])
            vectors[number] = total
        return [part for part in _parts(left) if self._is_sum(part, vectors)]

    def roster_numbers(self) -> range:
        return range(len(self.roster.entries))

    def _is_sum(self, part: set[int], vectors: dict[int, np.ndarray]) -> bool:
        mask = np.uint32((1 << self.world.bits) - 1)
        found = sum((vectors[number] for number in part), np.zeros(self.world.length, np.uint32)) & mask
        return bool((found == self.world.total(part)).all())


def _parts(left: dict[int, set[frozenset[int]]]) -> list[set[int]]:
    """Platforms joined by masks that both still carry."""
    parts: list[set[int]] = []
    for number, masks in left.items():
        near = [part for part in parts if any(masks & left[other] for other in part)]
        parts = [part for part in parts if part not in near] + [{number}.union(*near)]
    return parts


def sums_of_at_least(server: Server, smallest: int) -> None:
    bared = server.bared()
    assert len(bared) <= 1
    assert all(len(part) >= smallest for part in bared), bared


def unchecked_list(self: Active, round_: int, survivors: tuple[int, ...]) -> bytes:
    """`Active._list` that forgets which list it signed."""
    return self.session.survivors(round_, survivors)


class TestTwoKindsOfShare:
    """Five platforms, threshold three: the server tells some that platform 4 survived, and others that it is gone."""

    def attack(self, world: Make) -> Server:
        server = Server(world(5, threshold=0.6))
        for number in range(5):
            assert server.ask_mask(number)
        for number in range(5):
            server.ask_unmask(number, range(5))  # gives the shares of 4's seed...
        for number in range(4):
            server.ask_confirm(number, range(4))
        for number in range(4):
            server.ask_unmask(number, range(4))  # ...and then of its mask key
        return server

    def test_it_gains_nothing(self, world: Make) -> None:
        server = self.attack(world)
        assert server.secret(4, "seed") is not None and server.secret(4, "key") is None
        assert server.bared() == [{0, 1, 2, 3, 4}]
        assert len(server.refused) == 8 and all(isinstance(error, OutOfOrder) for error in server.refused)

    def test_without_the_check_it_has_the_vector(self, world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Active, "_list", unchecked_list)
        server = self.attack(world)
        assert {4} in server.bared()

    @pytest.mark.parametrize("told", [{0, 1}, {0, 1, 2}, {0, 2, 3}])
    def test_telling_the_two_lies_to_different_platforms(self, world: Make, told: set[int]) -> None:
        server = Server(world(5, threshold=0.6))
        for number in range(5):
            server.ask_mask(number)
        for number in told:
            assert server.ask_unmask(number, range(5))
        others = {0, 1, 2, 3} - told
        for number in others:
            assert server.ask_confirm(number, range(4))
        for number in others:
            server.ask_unmask(number, range(4))
        assert server.secret(4, "key") is None or server.secret(4, "seed") is None
        sums_of_at_least(server, 3)

    def test_what_the_refusal_protects_survives_a_restart(self, world: Make) -> None:
        """The world keeps each platform as bytes between any two questions; that is where the memory is."""
        made = world(5, threshold=0.6)
        server = Server(made)
        for number in range(5):
            server.ask_mask(number)
        server.ask_unmask(0, range(5))
        before = made.disk[0]
        assert not server.ask_confirm(0, range(4))
        assert made.disk[0] == before and made.active(0).listed


class TestTwoLists:
    def attack(self, world: Make, accomplices: Collection[int]) -> Server:
        """Two lists, each without one honest platform, shown to different ones; accomplices sign both."""
        server = Server(world(6, threshold=0.5, colluders=1), accomplices)
        for number in range(6):
            server.ask_mask(number)
        lists = [(0, 1, 2, 3, 5), (0, 1, 2, 4, 5)]  # 5 is the accomplice
        for number, which in ((0, 0), (3, 0), (1, 1), (2, 1), (4, 1)):
            server.ask_confirm(number, lists[which])
        for number, which in ((0, 0), (3, 0), (1, 1), (2, 1), (4, 1), (5, 0), (5, 1)):
            server.ask_unmask(number, lists[which])
        return server

    def test_at_most_one_is_answered(self, world: Make) -> None:
        server = self.attack(world, {5})
        gone = {number for number in range(5) if server.secret(number, "key")}
        assert len(gone) <= 1
        sums_of_at_least(server, server.roster.quorum.honest)

    def test_too_few_votes_would_let_both_through(self, world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def all_sign(self: Active, signed: Any, digest: bytes, among: set[int], *, known: set[int]) -> set[int]:
            return set(among)

        monkeypatch.setattr(Active, "_signers", all_sign)
        monkeypatch.setattr(Active, "_list", unchecked_list)
        server = Server(world(6, threshold=0.5, colluders=1), {5})
        for number in range(6):
            server.ask_mask(number)
        for number in range(5):
            server.ask_unmask(number, range(6))
            server.ask_unmask(number, {0, 1, 2, 3, 4, 5} - {(number + 1) % 5})
        for number in range(5):
            for gone in range(1, 5):
                server.ask_unmask(number, set(range(6)) - {gone})
        assert any(len(part) == 1 for part in server.bared())

    @pytest.mark.parametrize(
        "survivors",
        [(0, 1, 2), (1, 2, 3, 4), (0, 1, 2, 3, 3), (0, 2, 1, 3), (0, 1, 2, 3, 9), ()],
        ids=["too short", "without the one asked", "one twice", "out of order", "a stranger", "empty"],
    )
    def test_lists_that_nobody_signs(self, world: Make, survivors: tuple[int, ...]) -> None:
        made = world(6, threshold=0.6)
        server = Server(made)
        for number in range(6):
            server.ask_mask(number)
        for ask in (
            lambda: made.ask_confirm(0, Confirm(round=1, survivors=survivors)),
            lambda: made.ask_unmask(0, Unmask(round=1, survivors=survivors, consents=(), confirmations=())),
        ):
            with pytest.raises(ProtocolError):
                ask()


class TestSignatures:
    @pytest.fixture
    def server(self, world: Make) -> Server:
        server = Server(world(6, threshold=0.6))
        for number in range(5):
            server.ask_mask(number)
        for number in range(5):
            server.ask_confirm(number, range(5))
        return server

    def request(self, server: Server, **over: Any) -> Unmask:
        session = SumSession(roster=server.roster, present=server.present)
        values = {
            "round": 1,
            "survivors": (0, 1, 2, 3, 4),
            "consents": server._signed(server.consents[session.digest], session.consent),
            "confirmations": server._signed(server.confirmed[(0, 1, 2, 3, 4)], b""),
        }
        return Unmask(**{**values, **over})

    def test_the_honest_request_is_answered(self, server: Server) -> None:
        server.world.ask_unmask(0, self.request(server))

    @pytest.mark.parametrize("which", ["consents", "confirmations"])
    @pytest.mark.parametrize(
        "how", ["none", "too few", "one repeated", "another's", "of a stranger", "of another round", "too many"]
    )
    def test_signatures_that_do_not_count(self, server: Server, which: str, how: str) -> None:
        good = getattr(self.request(server), which)
        votes = server.roster.quorum.votes
        session = SumSession(roster=server.roster, present=server.present)
        digest = session.survivors(2, (0, 1, 2, 3, 4)) if which == "confirmations" else session.survivors(1, server.present)
        bad = {
            "none": (),
            "too few": good[: votes - 1],
            "one repeated": good[:1] * 6,
            "another's": tuple(replace(one, number=(one.number + 1) % 5) for one in good),
            "of a stranger": tuple(
                Signed(number=number, signature=Identity(bytes([number + 1]) * 32).sign(digest)) for number in range(5)
            ),
            "of another round": tuple(
                Signed(number=number, signature=server.world.identities[number].sign(digest)) for number in range(5)
            ),
            "too many": good * 9,
        }[how]
        with pytest.raises(ProtocolError):
            server.world.ask_unmask(0, self.request(server, **{which: bad}))
        assert server.world.active(0).listed  # it signed the list; but it gave nothing
        server.world.ask_unmask(0, self.request(server))


class TestReplacedKeys:
    """The server slips in keys of its own, somewhere."""

    def swapped(self, made: Any, victim: int, *, resigned: bool) -> tuple[RosterEntry, Keys]:
        old = made.coordinator.adverts[victim].keys
        own = X25519PrivateKey.generate().public_key().public_bytes_raw()
        mine = Identity(b"\7" * 32)
        keys = replace(old, masks=own * old.rounds, sealing=own, identity=mine.public if resigned else old.identity)
        signature = mine.sign(keys.signed) if resigned else made.coordinator.adverts[victim].signature
        return RosterEntry(platform=old.platform, identity=keys.identity, keys=keys.digest, signature=signature), keys

    @pytest.mark.parametrize("resigned", [False, True], ids=["old signature", "own identity"])
    @pytest.mark.parametrize("victim", [0, 2])
    def test_on_the_roster(self, fresh: Make, victim: int, resigned: bool) -> None:
        made = fresh(4)
        entry, keys = self.swapped(made, victim, resigned=resigned)
        entries = tuple(entry if number == victim else old for number, old in enumerate(made.coordinator.roster.entries))
        roster = replace(made.coordinator.roster, entries=entries)
        request = Deal(
            roster=roster, keys=tuple(keys if other == victim else made.coordinator.adverts[other].keys for other in (1, 2, 3))
        )
        with pytest.raises(ProtocolError):
            made.state(0).deal(request, peers=made.peers, entropy=bytes)

    def test_beside_the_roster(self, fresh: Make) -> None:
        made = fresh(4)
        _, keys = self.swapped(made, 2, resigned=False)
        good = made.coordinator.deal_for(0)
        for bad in ((good.keys[0], keys, good.keys[2]), good.keys[:2], (*good.keys, good.keys[0]), good.keys[::-1]):
            with pytest.raises(ProtocolError):
                made.state(0).deal(Deal(roster=good.roster, keys=bad), peers=made.peers, entropy=bytes)
        made.state(0).deal(good, peers=made.peers, entropy=bytes)

    def test_a_platform_that_the_operator_does_not_know(self, fresh: Make) -> None:
        made = fresh(3)
        del made.peers["p02"]
        with pytest.raises(ProtocolError, match="p02"):
            made.state(0).deal(made.coordinator.deal_for(0), peers=made.peers, entropy=bytes)

    def test_with_the_check_taken_out_the_server_reads_everything(self, fresh: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """All keys but the victim's are the server's own: without identities it would need no accomplice."""
        monkeypatch.setattr(Enrolled, "_require_known", lambda self, roster, peers: None)
        made = fresh(3)
        private = [X25519PrivateKey.generate() for _ in range(3)]
        swapped = []
        for number in (1, 2):
            old = made.coordinator.adverts[number].keys
            public = private[number].public_key().public_bytes_raw()
            swapped.append(replace(old, masks=public * old.rounds, sealing=public))
        entries = [made.coordinator.roster.entries[0]]
        entries += [RosterEntry(platform=k.platform, identity=k.identity, keys=k.digest, signature=bytes(64)) for k in swapped]
        roster = replace(made.coordinator.roster, entries=tuple(entries))
        dealing, _ = made.state(0).deal(Deal(roster=roster, keys=tuple(swapped)), peers=made.peers, entropy=bytes)
        request = Mask(round=1, present=(0, 1, 2), parcels=(), length=5, bits=20)
        active = dealing.open(request)
        _, answer = active.mask(active.ready(request, QUESTION), made.vectors[0], identity=made.identities[0])
        total = unpack_words(answer.words, length=5, bits=20).copy()
        frame = MaskFrame(round=1, length=5, bits=20, question=QUESTION)
        for other in (1, 2):
            mine = made.coordinator.adverts[0].keys.mask(1)
            add_masks(total, [(agree(private[other], mine, salt=active.session.digest, info=frame.pair(0, other)), True)])
        add_masks(total, [(derive(active.secrets[32:64], salt=active.session.digest, info=frame.self(0)), True)])
        np.testing.assert_array_equal(total & np.uint32((1 << 20) - 1), made.vectors[0])


class TestReplay:
    def test_a_round_is_masked_once(self, world: Make) -> None:
        """Two vectors under one round's masks would give their difference away."""
        made = world(3, rounds=3)
        work = made.round(1)
        made.ask_mask(0, work.mask_for(0))
        for change in ({"question": bytes(32)},):
            with pytest.raises(OutOfOrder):
                made.ask_mask(0, work.mask_for(0), **change)
        for over in ({"length": 4}, {"bits": 19}):
            with pytest.raises(OutOfOrder):
                made.ask_mask(0, replace(work.mask_for(0), **over))

    def test_rounds_only_rise_and_end(self, world: Make) -> None:
        made = world(3, rounds=3)
        made.play(2)
        for round_ in (1, 0, 4):
            with pytest.raises(OutOfOrder):
                made.ask_mask(0, replace(made.round(2).mask_for(0), round=round_))
        made.play(3)

    def test_shares_of_another_round_are_not_given(self, world: Make) -> None:
        made = world(4, rounds=3, threshold=0.5)
        made.play(1)
        server = Server(made)
        for number in range(4):
            assert server.ask_mask(number, round=2)
        for round_ in (1, 3):
            for number in range(4):
                assert not server.ask_confirm(number, (0, 1, 2), round_)
                assert not server.ask_unmask(number, (0, 1, 2, 3), round_=round_)
        assert all(isinstance(error, OutOfOrder) for error in server.refused)
        assert server.ask_unmask(0, (0, 1, 2, 3), round_=2)

    def test_a_past_rounds_secrets_are_gone_from_the_disk(self, world: Make) -> None:
        made = world(3, rounds=2)
        made.play(1)
        first = made.active(0)
        secrets, shares = first.secrets[:64], first.shares[:72]
        assert secrets[:32] in made.disk[0] and shares in made.disk[0]
        made.play(2)
        assert secrets[:32] not in made.disk[0] and secrets[32:] not in made.disk[0] and shares not in made.disk[0]

    def test_parcels_of_another_run_are_worth_nothing(self, world: Make, fresh: Make) -> None:
        """Same platforms, same identity keys, another run: its shares are not taken for this one's."""
        made, other = world(3, threshold=0.6), fresh(3, threshold=0.6, run="other")
        other.deal()
        request = replace(made.round().mask_for(0), parcels=other.round().mask_for(0).parcels)
        made.ask_mask(0, request)
        held = made.active(0)._shares()
        assert valid(held[0]).all() and not valid(held[1:]).any()

    def test_parcels_cannot_change_their_sender(self, world: Make) -> None:
        made = world(3)
        request = made.round().mask_for(0)
        one, two = request.parcels
        crossed = (Parcel(sender=one.sender, sealed=two.sealed), Parcel(sender=two.sender, sealed=one.sealed))
        made.ask_mask(0, replace(request, parcels=crossed))
        assert not valid(made.active(0)._shares()[1:]).any()
        with pytest.raises(ProtocolError):
            made.ask_mask(1, replace(request, parcels=(Parcel(sender=1, sealed=b""),)))


class TestIsolation:
    """The server makes one platform's masks worthless by lying about who is there."""

    def test_withheld_shares_change_nothing_about_masks(self, world: Make) -> None:
        server = Server(world(5, threshold=0.8, colluders=1), {4})
        for number in range(5):
            server.ask_mask(number, withheld={0, 1, 2, 3} if number == 0 else ())
        for number in range(5):
            server.ask_unmask(number, range(5))
        assert server.secret(0, "seed") is not None
        assert server.bared() == [{0, 1, 2, 3}]

    def attack(self, world: Make) -> Server:
        """On a ring of 12 with 4 neighbours each and t = 10, platform 0 hears of a session without its nearest neighbours.

        Its next nearest are asked as if all had survived, and give shares of its seed; then they are called lost, and
        the rest gives their mask keys. So every mask of platform 0 would be known, were its consent not asked for.
        """
        made = world(12, threshold=10 / 12, rounds=1)
        roster = made.coordinator.roster
        assert (roster.quorum.degree, roster.quorum.threshold, roster.quorum.shares) == (4, 10, 3)
        around = set(roster.neighbours(0))
        nearest = {other for other in around if len(around & set(roster.neighbours(other))) == 2}
        further = around - nearest
        assert len(nearest) == len(further) == 2
        everyone = set(range(12))
        server = Server(made)
        server.ask_mask(0, present=tuple(sorted(everyone - nearest)))
        for number in everyone - {0}:
            server.ask_mask(number)
        for number in further:
            server.ask_unmask(number, everyone)
        for number in everyone - further - {0}:
            server.ask_confirm(number, everyone - further)
        for number in everyone - further - {0}:
            server.ask_unmask(number, everyone - further)
        return server

    def test_another_session_for_one_platform(self, ring: None, world: Make) -> None:
        server = self.attack(world)
        assert server.secret(0, "seed") is None
        assert server.bared() == []

    def test_without_its_consent_it_is_isolated(self, ring: None, world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Active._signers

        def trusting(self: Active, signed: Any, digest: bytes, among: set[int], *, known: set[int]) -> set[int]:
            return among if digest == self.session.consent else original(self, signed, digest, among, known=known)

        monkeypatch.setattr(Active, "_signers", trusting)
        server = self.attack(world)
        assert {0} in server.bared()

    def test_a_platform_told_another_length_stays_hidden(self, world: Make) -> None:
        made = world(4)
        server = Server(made)
        made.vectors = np.zeros((4, 5), np.uint32)
        for number in range(1, 4):
            server.ask_mask(number)
        server.ask_mask(0, bits=12)
        for number in range(4):
            server.ask_unmask(number, range(4))
        assert server.bared() == []


OTHER = digest_of("question", b"a model whose gradient is zero")


class TestAccomplices:
    def test_fewer_than_the_threshold_of_shares_give_nothing(self, world: Make) -> None:
        made = world(5, threshold=0.8, colluders=1)
        for accomplices in ({1}, {1, 2}, {1, 2, 3}):
            server = Server(made, accomplices)
            for number in range(5):
                server.ask_mask(number)
            assert len(accomplices) < made.coordinator.roster.quorum.shares
            assert server.secret(0, "seed") is None and server.secret(0, "key") is None
            assert server.bared() == []

    def test_as_many_as_the_threshold_would_have_it(self, world: Make) -> None:
        made = world(5, threshold=0.6, colluders=0)
        server = Server(made, {1, 2, 3})
        for number in range(5):
            server.ask_mask(number)
        assert {0} in server.bared()


@settings(max_examples=30, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_server_says_it_learns_one_sum_of_at_least_t_minus_c(world: Make, data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 7))
    colluders = data.draw(st.integers(0, 2))
    play(world(n, threshold=0.5, colluders=colluders, rounds=1, direct=True), colluders, data)


@settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_same_on_a_ring(ring: None, world: Make, data: st.DataObject) -> None:
    made = world(11, threshold=0.82, colluders=1, rounds=1, length=2, direct=True)
    assert not made.coordinator.roster.quorum.complete
    play(made, 1, data)


def play(made: Any, colluders: int, data: st.DataObject) -> None:
    """Two lists (or sessions), told to everybody as the server likes, as often as it likes, with every signature it can get."""
    n, threshold = made.n, made.coordinator.roster.quorum.threshold
    accomplices = data.draw(st.sets(st.integers(0, n - 1), max_size=colluders))
    server = Server(made, accomplices)

    def some(among: Collection[int]) -> tuple[int, ...]:
        size = data.draw(st.integers(threshold, len(among)))
        return tuple(sorted(data.draw(st.permutations(sorted(among)))[:size]))

    everyone = tuple(range(n))
    sessions = [everyone, some(everyone)]
    which = {number: data.draw(st.integers(0, 3)) == 3 and number in sessions[1] for number in everyone}
    # Most are asked alike, some with another model.
    asked = {number: OTHER if data.draw(st.integers(0, 9)) == 9 else QUESTION for number in everyone}
    for number in everyone:
        server.ask_mask(number, present=sessions[which[number]], question=asked[number])
    lists = [(which_, some(sessions[which_])) for which_ in (0, 0, 1)] + [(0, everyone)]
    for _ in range(2):
        for number in data.draw(st.permutations(everyone)):
            for at in data.draw(st.permutations(range(len(lists)))):
                session, survivors = lists[at]
                server.ask_confirm(number, survivors)
                server.ask_unmask(number, survivors, present=sessions[session])
    for owner in set(everyone) - accomplices:
        assert server.secret(owner, "seed") is None or server.secret(owner, "key") is None
    sums_of_at_least(server, made.coordinator.roster.quorum.honest)
    for part in server.bared():
        assert len({asked[number] for number in part}) == 1


class TestRoundsApart:
    def test_every_rounds_secrets_are_their_own_draw(self, fresh: Make) -> None:
        """Each mask key and each seed is a stretch of the entropy that nothing else was made from."""
        made = fresh(2, rounds=5)
        drawn: list[bytes] = []

        def entropy(count: int) -> bytes:
            drawn.append(stream("apart", len(drawn))(count))
            return drawn[-1]

        enrolled = Enrolled.enrol(made.terms, platform="p00", identity=made.identities[0], entropy=entropy)
        pool = b"".join(drawn)
        places = [pool.find(enrolled.secrets[at : at + 32]) for at in range(0, len(enrolled.secrets), 32)]
        assert len(enrolled.secrets) == 5 * 64
        assert -1 not in places
        assert all(abs(a - b) >= 32 for i, a in enumerate(places) for b in places[:i])

    def test_what_is_known_of_one_round_leaves_the_next_untouched(self, world: Make) -> None:
        """With other secrets in round 1 (drawn after it), round 2's answers are the same to the byte."""
        answers = []
        for other in (False, True):
            made = world(4, rounds=2, threshold=0.5)
            made.play(1, lost=[3])
            if other:
                for number in range(4):
                    state = made.state(number)
                    if isinstance(state, Active):
                        changed = bytes(64) + state.secrets[64:]
                        shares = state._shares().copy()
                        shares[:, 0] = 1
                        made.keep(number, replace(state, secrets=changed, shares=shares.tobytes()))
            work = made.round(2)
            sent = [made.ask_mask(number, work.mask_for(number)) for number in range(4)]
            for number, answer in enumerate(sent):
                work.masked(number, answer)
            sent += [made.ask_unmask(number, work.unmask_for(number)) for number in range(4)]
            answers.append(sent)
        assert answers[0] == answers[1]

    def test_all_that_came_out_of_round_one_does_not_open_round_two(self, world: Make) -> None:
        made = world(4, rounds=2, threshold=0.5)
        server = Server(made)
        for number in range(4):
            server.ask_mask(number)
        for number in range(4):
            server.ask_unmask(number, range(4))
        assert server.bared() == [{0, 1, 2, 3}]
        for number in range(4):
            assert server.ask_mask(number, round=2)
        assert server.bared() == []


def test_an_entropy_source_that_repeats_itself_is_seen(fresh: Make) -> None:
    """The test's own teeth: secrets that are alike in two rounds fail the test above."""
    made = fresh(1)
    enrolled = Enrolled.enrol(made.terms, platform="p00", identity=made.identities[0], entropy=lambda count: bytes(count))
    assert enrolled.secrets[:64] == enrolled.secrets[64:128]
    assert isinstance(made.state(0), Enrolled) and not isinstance(made.state(0), Dealing)
