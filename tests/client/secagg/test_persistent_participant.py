"""A platform's part in the secure sum on its disk: anew for every message, and never two answers to one round."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.secagg import participant_state as secure_state
from client.secagg.persistent_participant import PersistentParticipant, Register, identity_of, known_peers
from shared.base.atomic_files import read_checked, write_checked
from shared.base.errors import InputError, OutOfOrder, PrivacyError, ProtocolError, StorageError, UnknownPeer
from shared.base.settings import Settings
from shared.preferences.item_index import list_digest
from shared.preferences.platform_lists import PlatformLists
from shared.protocol.messages import Factors, Sum
from shared.protocol.question import question_of
from shared.secagg import messages as secagg
from shared.secagg.codec import VERSION, decode, encode
from shared.secagg.masks import MaskFrame
from shared.secagg.noise_agreement import LAST_SUM, Agreement, number_of, terms_of
from shared.secagg.roster import Advert
from shared.secagg.shared_catalogues import DeclaredCatalogue
from shared.secagg.trust_statement import TrustStatement
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Enrolment, SumCoordinator

Make = Callable[..., Settings]
DIMENSION = 40


class Federation:
    """Platforms on a disk, opened anew for every question, and a coordinator."""

    def __init__(self, root: Path, settings: Settings, *, count: int = 3, noise: float = 1.0, batch: float = 5.0) -> None:
        self.root, self.settings = root, settings
        self.names = [f"p{at}" for at in range(count)]
        enrolment = Enrolment(terms_of(settings, "run"))
        for name in self.names:
            self.register.add(name, identity_of(root / name, make=True))
            enrolment.add(decode(Advert, self.part(name).advert()), platform=name)
        agreement = Agreement(noise_multiplier=noise, batch=batch)
        self.coordinator = SumCoordinator(enrolment.close(encode(agreement)))
        self.point = agreement.point(dimension=DIMENSION, quorum=self.coordinator.roster.quorum, clip=settings.training.clip)

    @property
    def register(self) -> Register:
        return Register(self.root / ".identities")

    def path(self, name: str) -> Path:
        return self.root / name / "run.secure"

    def part(self, name: str, *, known: bool = False, **over: Any) -> PersistentParticipant:
        identity = identity_of(self.root / name, make=False)
        values = {"run": "run", "platform": name, "peers": self.register.peers, "known": known, **over}
        return PersistentParticipant(
            settings=self.settings,
            path=self.path(name),
            identity=identity,
            declared=DeclaredCatalogue(digest=name.encode().ljust(32), items=10, users=10),
            **values,
        )

    def deal(self, name: str, *, part: PersistentParticipant | None = None, **over: Any) -> bytes:
        body = encode(self.coordinator.deal_for(self.names.index(name)))
        return (part or self.part(name)).deal(
            body,
            **{"need": 1.0, "preference_need": 0.0, "taste_need": 0.0, "batch": 5.0, "dimensions": {"ab": DIMENSION}, **over},
        )

    def set_up(self) -> None:
        for at, name in enumerate(self.names):
            self.coordinator.dealt(at, decode(secagg.Dealt, self.deal(name)))
        self.coordinator.settle()

    def request(self, number: int, body: Any = None, *, model: float = 1.0) -> Sum:
        return Sum(
            run="run",
            settings=self.settings,
            round=number,
            factors=Factors.BOTH,
            adapter={"head.lora_A": np.full((1, DIMENSION), model, np.float32)},
            body=b"" if body is None else encode(body),
        )

    def round(self, number: int) -> Round:
        question = question_of(self.request(number))
        return Round(
            self.coordinator, MaskFrame(round=number_of(number), length=DIMENSION, bits=self.point.bits, question=question)
        )

    def sum(self, work: Round, name: str, words: np.ndarray, *, model: float = 1.0, finished: int = 0) -> bytes:
        part = self.part(name)
        request = self.request(work.frame.round - LAST_SUM, work.mask_for(self.names.index(name)), model=model)
        asked = part.asked(request, finished=finished)
        return asked.known or part.mask(asked, words)


@pytest.fixture
def federation(tmp_path: Path, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch) -> Federation:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return Federation(tmp_path, tiny_settings(strategy="secure-sum", rounds=3))


def vectors(federation: Federation) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 1 << federation.point.bits, DIMENSION, dtype=np.uint32) for _ in federation.names]


def test_every_message_may_find_a_new_process(federation: Federation) -> None:
    federation.set_up()
    for number in (1, 2, 3):
        work, words = federation.round(number), vectors(federation)
        for at, name in enumerate(federation.names):
            work.masked(at, decode(secagg.Masked, federation.sum(work, name, words[at])))
        for at, name in enumerate(federation.names):
            shares = federation.part(name).unmask(encode(work.unmask_for(at)))
            assert federation.part(name).unmask(encode(work.unmask_for(at))) == shares
            work.unmasked(at, decode(secagg.Unmasked, shares))
        wanted = sum(words[1:], words[0]) & np.uint32((1 << federation.point.bits) - 1)
        np.testing.assert_array_equal(work.sum(), wanted)


@pytest.mark.parametrize(
    ("colluders", "count", "holds"), [(0, 2, True), (1, 2, False), (1, 3, True), (2, 3, False), (2, 4, True)]
)
def test_somebody_else_is_in_the_sum_whoever_was_left_out(
    tmp_path: Path, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch, colluders: int, count: int, holds: bool
) -> None:
    """The coordinator decides who is on a roster: never this platform among those who may side with it."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    settings = tiny_settings(strategy="secure-sum", rounds=3, secure={"colluders": colluders})
    made = Federation(tmp_path, settings, count=count)
    if holds:
        made.deal("p0")
        return
    with pytest.raises(PrivacyError, match=f"one of {colluders + 2} hides this platform"):
        made.deal("p0")
    assert made.deal("p0", part=made.part("p0", simulation=True))  # which has no coordinator to distrust


def test_a_roster_with_a_stranger_is_refused_whatever_was_stated(federation: Federation) -> None:
    everybody = federation.register.peers()
    said = decode(TrustStatement, federation.part("p0").trust())
    assert said.trusts("p1", everybody["p1"]) and said.trusts("p2", everybody["p2"])
    unknown = {name: key for name, key in everybody.items() if name != "p2"}
    another = {**everybody, "p2": everybody["p1"]}
    for peers in (unknown, another):
        with pytest.raises(UnknownPeer, match="'p2'"):
            federation.deal("p0", part=federation.part("p0", peers=lambda peers=peers: peers))
        assert not decode(TrustStatement, federation.part("p0", peers=lambda peers=peers: peers).trust()).trusts(
            "p2", everybody["p2"]
        )
    federation.deal("p0")


def test_keys_are_made_once_and_shares_dealt_once(federation: Federation) -> None:
    adverts = {name: federation.part(name).advert() for name in federation.names}
    assert len(set(adverts.values())) == 3
    assert adverts == {name: federation.part(name).advert() for name in federation.names}
    assert federation.deal("p0") == federation.deal("p0")


def test_only_the_owner_can_read_it(federation: Federation) -> None:
    federation.set_up()
    for name in federation.names:
        assert federation.path(name).stat().st_mode & 0o077 == 0
        assert (federation.root / name / "identity.key").stat().st_mode & 0o077 == 0


def test_a_round_has_one_answer(federation: Federation) -> None:
    federation.set_up()
    work, (words, other, _) = federation.round(1), vectors(federation)
    first = federation.sum(work, "p0", words)
    assert federation.sum(work, "p0", other) == first
    with pytest.raises(OutOfOrder):
        federation.sum(work, "p0", words, model=2.0)


def test_what_could_not_be_written_is_not_said(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    federation.set_up()
    work, (words, other, _) = federation.round(1), vectors(federation)
    before = federation.path("p0").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise StorageError("cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(secure_state, "write_checked", full)
        with pytest.raises(StorageError):
            federation.sum(work, "p0", words)
    assert federation.path("p0").read_bytes() == before
    answer = federation.sum(work, "p0", other)  # nobody has seen the first
    assert federation.sum(work, "p0", words) == answer


def test_a_damaged_state_ends_this_platforms_part(federation: Federation) -> None:
    federation.set_up()
    path = federation.path("p0")
    data = bytearray(path.read_bytes())
    for at in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(StorageError, match="damaged"):
            federation.part("p0").advert()
    for cut in (0, 3, 33, len(data) - 1):
        path.write_bytes(bytes(data[:cut]))
        with pytest.raises(StorageError, match="damaged"):
            federation.part("p0").advert()


def test_a_state_of_another_release_is_refused_in_words(federation: Federation) -> None:
    federation.set_up()
    path = federation.path("p0")
    data = bytearray(read_checked(path))
    data[2] = VERSION - 1
    write_checked(path, bytes(data))
    with pytest.raises(StorageError, match=f"format {VERSION - 1}, and this program reads format {VERSION}"):
        federation.part("p0").advert()


def test_lost_keys_are_not_made_again(federation: Federation) -> None:
    """Once the ledger or the run's memory knows the run; before, nothing was released."""
    first = federation.part("p0").advert()
    federation.path("p0").unlink()
    assert federation.part("p0").advert() != first
    federation.path("p0").unlink()
    with pytest.raises(PrivacyError, match="is not there"):
        federation.part("p0", known=True).advert()
    with pytest.raises(OutOfOrder, match="not in run"):
        federation.deal("p0")
    assert not federation.path("p0").exists()


def test_a_finished_round_without_its_answer_is_refused(federation: Federation) -> None:
    federation.set_up()
    words = vectors(federation)[0]
    for finished in (1, 2):
        with pytest.raises(OutOfOrder, match="the answer is not there"):
            federation.sum(federation.round(1), "p0", words, finished=finished)
    first = federation.sum(federation.round(1), "p0", words)
    assert federation.sum(federation.round(1), "p0", words, finished=1) == first
    federation.sum(federation.round(2), "p0", words, finished=1)


def test_another_catalogue_or_number_of_users_is_another_platform(federation: Federation) -> None:
    federation.set_up()
    part = federation.part("p0")
    part._declared = replace(part._declared, users=11)
    with pytest.raises(PrivacyError, match="declared users or another catalogue"):
        part.advert()


@pytest.mark.parametrize(
    ("over", "error"),
    [
        ({"need": 1.01}, PrivacyError),
        ({"need": math.nan}, PrivacyError),
        ({"batch": 5.1}, ProtocolError),
        ({"dimensions": {"ab": 1 << 29}}, ProtocolError),
        ({"taste_need": 5.0}, PrivacyError),
        ({"preference_need": 5e-324}, PrivacyError),
    ],
    ids=[
        "too little noise",
        "a need that is none",
        "too small a batch",
        "a vector too long",
        "too little for a taste map",
        "too little for preferences",
    ],
)
def test_an_agreement_that_does_not_suffice_is_not_dealt_for(
    federation: Federation, over: dict[str, Any], error: type[Exception]
) -> None:
    before = federation.path("p0").read_bytes()
    with pytest.raises(error):
        federation.deal("p0", **over)
    assert federation.path("p0").read_bytes() == before
    federation.deal("p0")


def test_a_point_of_another_length_or_width_is_refused(federation: Federation) -> None:
    federation.set_up()
    part = federation.part("p0")
    mask = federation.round(1).mask_for(0)
    asked = part.asked(federation.request(1, mask), finished=0)
    assert part.point(asked, dimension=DIMENSION) == federation.point
    with pytest.raises(ProtocolError, match="words"):
        part.point(asked, dimension=DIMENSION + 1)
    with pytest.raises(ProtocolError, match="round"):
        part.asked(federation.request(2, mask), finished=0)


def test_a_round_goes_on_only_with_vectors_that_are_young_enough_and_this_platforms(federation: Federation) -> None:
    federation.set_up()
    part = federation.part("p0")
    first = part.asked(federation.request(1, federation.round(1).mask_for(0)), finished=0)
    most, based = federation.settings.training.bank_steps, bytes(range(32))
    assert most > 2
    for number in range(most, 2 * most + 3):
        for since in range(1, number + 3):
            active = replace(first.active, since=since, based=based)
            mask = replace(first.request, round=number, before=secagg.Before(since=since, based=based))
            if 0 < number - since < most:
                # Counted in the rounds of the run, which begin with another number than the sums.
                assert part._require_since(active, mask, number - LAST_SUM) == since - LAST_SUM
                for other in (replace(active, since=since + 1), replace(active, based=bytes(32))):
                    with pytest.raises(OutOfOrder, match="does not have"):
                        part._require_since(other, mask, number - LAST_SUM)
            else:
                with pytest.raises(ProtocolError, match="rounds ago"):
                    part._require_since(active, mask, number - LAST_SUM)
        anew = replace(first.request, round=number, before=secagg.Before())
        assert part._require_since(active, anew, number - LAST_SUM) == number - LAST_SUM


def test_preferences_are_asked_for_of_items_on_two_signed_lists(federation: Federation) -> None:
    federation.set_up()
    part = federation.part("p0")
    asked = part.asked(federation.request(1, federation.round(1).mask_for(0)), finished=0)
    lists = [np.array(own, np.uint64) for own in ([1, 2, 3], [2, 3, 4, 5], [3, 5, 6])]
    session = asked.active.session
    entries = tuple(
        replace(entry, declared=encode(DeclaredCatalogue(digest=bytes(32), items=9, users=9, item_list=list_digest(own))))
        for entry, own in zip(session.roster.entries, lists, strict=True)
    )
    signed = replace(
        asked, active=replace(asked.active, session=replace(session, roster=replace(session.roster, entries=entries)))
    )
    text = PlatformLists.of(lists).text()
    for item in range(8):
        items = np.array([3, item], np.uint64)
        if sum(item in own for own in lists) >= 2:
            part.require_shared(signed, items, text)
        else:
            with pytest.raises(ProtocolError, match="only one platform"):
                part.require_shared(signed, items, text)
    for at, name in enumerate(federation.names):
        # The coordinator adds an item to a list, or leaves one out, and may say so of no platform's.
        for other in (np.array([*lists[at], 9], np.uint64), lists[at][:-1]):
            text = PlatformLists.of([*lists[:at], other, *lists[at + 1 :]]).text()
            with pytest.raises(ProtocolError, match=f"not the one '{name}' signed"):
                part.require_shared(signed, np.array([3], np.uint64), text)


def test_phases_out_of_order(federation: Federation) -> None:
    with pytest.raises(OutOfOrder, match="enrolled"):
        federation.part("p0").confirm(encode(secagg.Confirm(round=1, survivors=(0, 1, 2))))
    federation.set_up()
    with pytest.raises(OutOfOrder, match="dealing"):
        federation.part("p0").unmask(encode(secagg.Unmask(round=1, survivors=(0, 1, 2), consents=(), confirmations=())))
    federation.sum(federation.round(1), "p0", vectors(federation)[0])
    with pytest.raises(OutOfOrder, match="active"):
        federation.deal("p0")


def test_only_whom_the_operator_knows(federation: Federation) -> None:
    (federation.root / ".identities" / "p2").unlink()
    with pytest.raises(ProtocolError, match="p2"):
        federation.deal("p0")


def test_settings_that_differ_from_the_others(federation: Federation, tiny_settings: Make) -> None:
    federation.settings = tiny_settings(strategy="secure-sum", rounds=3, secure={"colluders": 0})
    with pytest.raises(PrivacyError, match="other settings"):
        federation.deal("p0")
    federation.path("p0").unlink()
    federation.part("p0").advert()
    with pytest.raises(ProtocolError, match="terms"):
        federation.deal("p0")


def test_an_identity_is_made_only_in_a_simulation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="identity"):
        identity_of(tmp_path, make=False)
    made = identity_of(tmp_path, make=True)
    assert identity_of(tmp_path, make=False).public == made.public
    (tmp_path / "identity.key").chmod(0o644)
    with pytest.raises(StorageError, match="others may read"):
        identity_of(tmp_path, make=False)


def test_peers_of_a_platform_file() -> None:
    assert known_peers({"shop": base64.b64encode(b"k" * 32).decode()}) == {"shop": b"k" * 32}


def test_the_register_takes_no_drafts_or_strangers(tmp_path: Path) -> None:
    identity = identity_of(tmp_path / "a", make=True)
    register = Register(tmp_path / ".identities")
    register.add("a", identity)
    (tmp_path / ".identities" / ".a.draft").write_bytes(b"x" * 32)
    (tmp_path / ".identities" / "short").write_bytes(b"x")
    assert register.peers() == {"a": identity.public}
