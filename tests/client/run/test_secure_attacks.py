"""Dishonest coordinators against real workers: different questions, catalogues of one platform, state that was lost.

Each attack is also played against the program without the check that stops it, where it must succeed: so the tests cannot pass by
accident.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.privacy import mechanism
from client.privacy.popularity_release import bounded_counts
from client.secagg.persistent_participant import PersistentParticipant
from shared.base.errors import ProtocolError
from shared.model.adapter import initial
from shared.protocol.messages import Arrays, Join, Joined, Phase, Reason, Refusal, Secured, Summed
from shared.protocol.question import question_of
from shared.secagg import messages as secagg
from shared.secagg.codec import decode, encode
from shared.secagg.masks import MaskFrame, derive
from shared.secagg.noise_agreement import LAST_SUM, Agreement, number_of
from shared.secagg.shared_catalogues import MOST_ITEMS, DeclaredCatalogue, Popularity
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Enrolment, SumCoordinator
from tests.client.run.test_secure_session import Eyes, Federation, federation

__all__ = ["federation"]


def no_noise(point: Any, random: Any) -> np.ndarray:
    return np.zeros(point.dimension, np.int64)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return abs(float(np.corrcoef(one, other)[0, 1]))


class Deceiver(Round):
    """Takes each platform's own mask away by the question that this platform was asked."""

    def __init__(
        self, coordinator: SumCoordinator, frames: Mapping[int, MaskFrame], told: Mapping[int, tuple[bytes, ...]]
    ) -> None:
        super().__init__(coordinator, frames[0])
        self.frames, self.said = frames, told

    def mask_for(self, number: int) -> secagg.Mask:
        return replace(super().mask_for(number), before=secagg.Before(told=self.said.get(number, ())))

    def _keys(self, secrets: dict[int, bytes]) -> Iterator[tuple[bytes, bool]]:
        for number in self.survivors:
            yield derive(secrets[number], salt=self._session.digest, info=self.frames[number].self(number)), True


def deceive(
    made: Federation,
    round_: int,
    adapters: Mapping[int, Arrays],
    told: Mapping[int, tuple[bytes, ...]] | None = None,
) -> np.ndarray:
    """A round in which every platform is asked with an adapter of its own; what the coordinator decodes."""
    point, said = made.point(adapters[0]), told or {}
    frames = {
        at: MaskFrame(
            round=number_of(round_),
            length=point.dimension,
            bits=point.bits,
            question=question_of(made.request(round_, adapter), before=secagg.Before(told=said.get(at, ()))),
        )
        for at, adapter in adapters.items()
    }
    work = Deceiver(made.coordinator, frames, said)
    for at, adapter in adapters.items():
        answer = made.sum(at, work, adapter)
        assert isinstance(answer, Summed), made.workers[at].failure
        work.masked(at, decode(secagg.Masked, answer.body))
    unmask(made, work, round_)
    return point.decode(work.sum())


def unmask(made: Federation, work: Round, round_: int) -> None:
    for at in work.survivors:
        answer = made.secure(at, Phase.UNMASK, round_, work.unmask_for(at))
        assert isinstance(answer, Secured), made.workers[at].failure
        work.unmasked(at, decode(secagg.Unmasked, answer.body))


class TestModelInconsistency:
    """The victim gets the model, everyone else one at which LoRA's gradient is zero (Pasquini et al. 2022)."""

    @pytest.fixture
    def made(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> Federation:
        made = federation(3, model={"rank": 16})
        self.eyes = Eyes(monkeypatch)
        # What the noise hides is not to be hidden by luck.
        monkeypatch.setattr(mechanism, "noise_share", no_noise)
        made.set_up()
        return made

    def attack(self, made: Federation) -> float:
        adapter = initial(made.settings)
        nothing = {name: np.zeros_like(value) for name, value in adapter.items()}
        decoded = deceive(made, 1, {0: adapter, 1: nothing, 2: nothing})
        assert [bool(one.any()) for one in self.eyes.sums] == [True, False, False]
        assert len(decoded) > 4000
        return correlation(decoded, self.eyes.sums[0])

    def test_the_victims_vector_stays_hidden(self, made: Federation) -> None:
        assert self.attack(made) < 0.1

    def test_masks_without_the_question_give_it_away(self, made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        pair = MaskFrame.pair
        monkeypatch.setattr(MaskFrame, "pair", lambda self, one, other: pair(replace(self, question=bytes(32)), one, other))
        assert self.attack(made) > 0.99

    def test_an_honest_round_decodes(self, made: Federation) -> None:
        adapter = initial(made.settings)
        for round_ in (1, 2):
            decoded = made.play(round_, adapter)
            assert np.abs(decoded - sum(self.eyes.sums[-3:])).max() < 3 / made.point(adapter).scale

    def test_it_is_charged_like_any_round(self, made: Federation) -> None:
        """What a platform cannot know, that others were asked otherwise, it pays for; and answers no second time."""
        self.attack(made)
        assert all(("train", 1) in made.charges(at) for at in range(3))
        answer = made.sum(0, made.begin(1, initial(made.settings)), initial(made.settings))
        assert isinstance(answer, Summed)
        moved = {name: value + 1 for name, value in initial(made.settings).items()}
        assert isinstance(made.sum(0, made.begin(1, moved), moved), Refusal)


class TestToldDifferently:
    """The prior enters every gradient, and the coordinator says what round 0 summed."""

    @pytest.fixture
    def made(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> Federation:
        made = federation(catalogues=[11, 11, 11], secure={"colluders": 0}, model={"rank": 16})
        self.eyes = Eyes(monkeypatch)
        monkeypatch.setattr(mechanism, "noise_share", no_noise)
        made.set_up()
        self.said = [Popularity(counts=(np.ones(11, "<f4") * at).tobytes(), noise=1.0) for at in (1, 2, 2)]
        for at, popularity in enumerate(self.said):
            assert isinstance(made.secure(at, Phase.POPULARITY, 0, popularity), Secured)
        return made

    def test_their_vectors_do_not_cancel(self, made: Federation) -> None:
        adapter = initial(made.settings)
        decoded = deceive(made, 1, dict.fromkeys(range(3), adapter), {at: (one.digest,) for at, one in enumerate(self.said)})
        assert all(correlation(decoded, one) < 0.1 for one in (*self.eyes.sums, sum(self.eyes.sums)))

    def test_none_answers_as_if_it_had_been_told_what_the_others_were(self, made: Federation) -> None:
        adapter = initial(made.settings)
        for told in ((self.said[1].digest,), (), (self.said[0].digest,) * 2):
            made.told = told
            answer = made.sum(0, made.begin(1, adapter), adapter)
            assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert made.charges(0) == []

    def test_it_is_told_once(self, made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also after a crash between the two files that remember it."""
        made.workers[0].close()
        (made.root / "state" / "p0" / "runs" / "run.safetensors").unlink()
        made.restart(0)
        assert isinstance(made.secure(0, Phase.POPULARITY, 0, self.said[1]), Refusal)
        assert isinstance(made.secure(0, Phase.POPULARITY, 0, self.said[0]), Secured)

    def test_told_alike_they_are_summed(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = federation(catalogues=[11, 11, 11], secure={"colluders": 0})
        eyes = Eyes(monkeypatch)
        monkeypatch.setattr(mechanism, "noise_share", no_noise)
        made.set_up()
        for at in range(3):
            made.tell(at, np.ones(11), 1.0)
        adapter = initial(made.settings)
        decoded = made.play(1, adapter)
        assert correlation(decoded, sum(eyes.sums)) > 0.99


class TestItemsEncodedDifferently:
    """Items' vectors serve several rounds: the others make theirs with another model in round 1, and round 2 is asked alike."""

    @pytest.fixture
    def made(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> Federation:
        made = federation(3, model={"rank": 16})
        self.eyes = Eyes(monkeypatch)
        monkeypatch.setattr(mechanism, "noise_share", no_noise)
        made.set_up()
        adapter = initial(made.settings)
        other = {name: value + np.float32(0.1) for name, value in adapter.items()}
        deceive(made, 1, {0: adapter, 1: other, 2: other})
        made.asked[1] = question_of(made.request(1, adapter))
        return made

    def test_whoever_was_asked_otherwise_does_not_go_on(self, made: Federation) -> None:
        adapter = initial(made.settings)
        work = made.begin(2, adapter, since=1)
        before = [made.charges(at) for at in range(3)]
        answers = [made.sum(at, work, adapter) for at in range(3)]
        assert isinstance(answers[0], Summed)
        for at in (1, 2):
            answer = answers[at]
            assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
            assert "does not have" in str(made.workers[at].failure) and made.charges(at) == before[at]

    def test_without_the_check_their_sum_is_read(self, made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            PersistentParticipant, "_require_since", lambda self, active, mask, round_: mask.before.since - LAST_SUM
        )
        adapter = initial(made.settings)
        work = made.begin(2, adapter, since=1)
        for at in range(3):
            answer = made.sum(at, work, adapter)
            assert isinstance(answer, Summed), made.workers[at].failure
            work.masked(at, decode(secagg.Masked, answer.body))
        unmask(made, work, 2)
        assert correlation(made.point(adapter).decode(work.sum()), sum(self.eyes.sums[-3:])) > 0.99

    def test_encoded_anew_they_are_summed(self, made: Federation) -> None:
        adapter = initial(made.settings)
        decoded = made.play(2, adapter)
        assert correlation(decoded, sum(self.eyes.sums[-3:])) > 0.99
        # ... and from here on they serve.
        decoded = made.play(3, adapter, since=2)
        assert correlation(decoded, sum(self.eyes.sums[-3:])) > 0.99

    @pytest.mark.parametrize("change", [{"since": 1}, {"based": bytes(32)}, {"since": 3}, {"since": 9}])
    def test_no_other_round_is_gone_on_with(self, made: Federation, change: dict[str, Any]) -> None:
        adapter = initial(made.settings)
        work = made.begin(2, adapter, since=1)
        good = work._before
        work._before = replace(good, **change)
        answer = made.sum(0, work, adapter)
        assert isinstance(answer, Refusal)
        work._before = good
        assert isinstance(made.sum(0, work, adapter), Summed)

    def test_not_for_longer_than_the_settings_say(self, federation: Any) -> None:
        made = federation(1, training={"bank_steps": 2})
        made.set_up()
        adapter = initial(made.settings)
        made.play(1, adapter)
        made.play(2, adapter, since=1)
        answer = made.sum(0, made.begin(3, adapter, since=1), adapter)
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert ("train", 3) not in made.charges(0)

    def test_a_platform_that_lost_its_memory_of_them_pays_nothing(self, made: Federation) -> None:
        made.workers[0]._session.run.bank.remembered = {}
        before = made.charges(0)
        adapter = initial(made.settings)
        answer = made.sum(0, made.begin(2, adapter, since=1), adapter)
        assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
        assert "not remembered" in str(made.workers[0].failure) and made.charges(0) == before


class TestACatalogueListedAlone:
    """The coordinator agrees on a catalogue that the victim alone has: round 0 would be the victim's popularity."""

    def agree_on(self, made: Federation, *catalogues: DeclaredCatalogue) -> list[Any]:
        """Enrolled honestly, agreed dishonestly; the answers to the question for shares."""
        made.enrol()
        enrolment = Enrolment(made.coordinator.roster.terms)
        for advert in made.coordinator.adverts:
            enrolment.add(advert, platform=advert.keys.platform)
        made.agreement = replace(made.agreement, catalogues=tuple(sorted(catalogues, key=lambda one: one.digest)))
        made.coordinator = SumCoordinator(enrolment.close(encode(made.agreement)))
        return [made.secure(at, Phase.DEAL, 0, made.coordinator.deal_for(at)) for at in range(len(made.files))]

    def catalogue(self, made: Federation, at: int) -> DeclaredCatalogue:
        platform = made.workers[at]._platform
        return DeclaredCatalogue(digest=platform.catalogue_digest, items=platform.tables.items, users=platform.file.users)

    def join(self, made: Federation) -> None:
        for at in range(len(made.files)):
            made.expect(Joined, at, Join(run="run", settings=made.settings))

    @pytest.mark.parametrize("colluders", [0, 1])
    def test_nobody_deals_for_it_and_nothing_is_charged(self, federation: Any, colluders: int) -> None:
        # With one colluder three must have a catalogue: of two, the colluder knows its own.
        made = federation(catalogues=[60, 11, 11], secure={"colluders": colluders})
        self.join(made)
        alone = self.catalogue(made, 1 if colluders else 0)
        both = self.catalogue(made, 1)
        both = replace(both, users=max(file.users for file in made.files[1:]))
        answers = self.agree_on(made, *({alone.digest: alone, both.digest: both}.values()))
        assert all(isinstance(one, Refusal) and one.reason is Reason.MESSAGE for one in answers)
        assert "signed" in str(made.workers[0].failure)
        assert [made.charges(at) for at in range(3)] == [[], [], []]

    @pytest.mark.parametrize("change", [{"users": 999}, {"items": 12}], ids=["more users", "more items"])
    def test_it_is_what_they_signed_to_the_number(self, federation: Any, change: dict[str, int]) -> None:
        made = federation(catalogues=[11, 11, 11], secure={"colluders": 0})
        self.join(made)
        good = replace(self.catalogue(made, 0), users=max(file.users for file in made.files))
        assert all(isinstance(one, Refusal) for one in self.agree_on(made, replace(good, **change)))
        assert all(isinstance(one, Refusal) for one in self.agree_on(made))
        assert all(isinstance(one, Secured) for one in self.agree_on(made, good))

    def test_a_platforms_word_cannot_be_put_into_its_mouth(self, federation: Any) -> None:
        """The coordinator writes the victim's catalogue into another platform's line."""
        made = federation(catalogues=[60, 11, 12], secure={"colluders": 0})
        made.enrol()
        victim, other, third = made.coordinator.roster.entries
        facts = encode(replace(made.agreement, catalogues=(replace(self.catalogue(made, 0), users=made.files[0].users),)))
        for declared in (victim.declared, encode(replace(self.catalogue(made, 0), users=1))):
            entries = (victim, replace(other, declared=declared), third)
            made.coordinator.roster = replace(made.coordinator.roster, entries=entries, facts=facts)
            for at in (0, 2):
                answer = made.secure(at, Phase.DEAL, 0, made.coordinator.deal_for(at))
                assert isinstance(answer, Refusal)
                assert "'p1'" in str(made.workers[at].failure)
        assert made.charges(0) == []

    def test_without_the_count_it_reads_the_popularity(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Agreement, "require_signed", lambda *facts, **more: None)
        monkeypatch.setattr(PersistentParticipant, "_require_owners", lambda self, *facts, **more: None)
        monkeypatch.setattr(mechanism, "noise_share", no_noise)
        made = federation(catalogues=[60, 11, 12], secure={"colluders": 0})
        self.join(made)
        for at, answer in enumerate(self.agree_on(made, self.catalogue(made, 0))):
            made.coordinator.dealt(at, decode(secagg.Dealt, answer.body))
        made.coordinator.settle()
        assert correlation(made.play_popularity(), self.counts(made, 0)) > 0.99

    def counts(self, made: Federation, at: int) -> np.ndarray:
        platform = made.workers[at]._platform
        counts = bounded_counts(platform.split, platform.tables, seed=made.settings.seed).vector()
        return counts[np.argsort(np.array(platform.tables.item_ids))]

    def test_it_is_not_left_alone_by_calling_the_others_lost(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two of five have the catalogue, and one of the two is called lost in round 0."""
        monkeypatch.setattr(mechanism, "noise_share", no_noise)
        made = federation(catalogues=[60, 60, 12, 13, 14], secure={"colluders": 0, "threshold": 0.6})
        made.set_up()
        assert [one.items for one in made.agreement.catalogues] == [60]
        work = made.begin_popularity()
        for at in (0, 2, 3, 4):
            answer = made.count(at, work)
            assert isinstance(answer, Summed), made.workers[at].failure
            work.masked(at, decode(secagg.Masked, answer.body))
        for at in work.survivors:
            assert isinstance(made.secure(at, Phase.CONFIRM, 0, work.confirm()), Refusal)
            assert "1 platforms with catalogue" in str(made.workers[at].failure)
        # With the check taken out the round goes on, and the victim's popularity is read.
        monkeypatch.setattr(PersistentParticipant, "_require_owners", lambda self, *facts, **more: None)
        for at in work.survivors:
            answer = made.secure(at, Phase.CONFIRM, 0, work.confirm())
            assert isinstance(answer, Secured)
            work.confirmed(at, decode(secagg.Confirmed, answer.body))
        unmask(made, work, 0)
        assert correlation(made.popularity().decode(work.sum()), self.counts(made, 0)) > 0.99

    def test_the_agreement_cannot_ask_for_memory(self, federation: Any) -> None:
        made = federation(catalogues=[11, 11, 12], secure={"colluders": 0})
        self.join(made)
        with pytest.raises(ProtocolError, match="items"):
            DeclaredCatalogue(digest=bytes(32), items=MOST_ITEMS + 1, users=1)
        half = [DeclaredCatalogue(digest=bytes([at]) * 32, items=MOST_ITEMS, users=1) for at in (1, 2)]
        with pytest.raises(ProtocolError, match=f"{2 * MOST_ITEMS} items"):
            Agreement(noise_multiplier=1.0, batch=10.0, catalogues=tuple(half))
        tracemalloc.start()
        try:
            answers = self.agree_on(made, half[0])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert all(isinstance(one, Refusal) for one in answers)
        assert peak < MOST_ITEMS

    def test_nor_can_a_question(self, federation: Any) -> None:
        made = federation(2, secure={"colluders": 0})
        made.set_up()
        adapter = initial(made.settings)
        work = made.begin(1, adapter)
        work.frame = replace(work.frame, length=secagg.MOST_WORDS)
        tracemalloc.start()
        try:
            answer = made.sum(0, work, adapter)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert peak < secagg.MOST_WORDS / 16
        assert ("train", 1) not in made.charges(0)
