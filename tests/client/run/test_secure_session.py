"""A round of the secure sum on real platforms: what it sums, what it charges, what leaves, and what stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config.platform_file import load
from client.privacy import mechanism
from client.privacy.answer_timing import Pace
from client.privacy.bounded_sum import BoundedSum, nothing
from client.privacy.egress_check import checked
from client.privacy.popularity_release import bounded_counts, log_popularity
from client.run.run_context import RunContext
from client.training.adam import Adam
from client.training.trainer import Trainer
from client.worker.request_handler import Worker
from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.ledger.reading import read_ledger
from shared.model.adapter import initial, trained
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import (
    Answer,
    Arrays,
    Count,
    Factors,
    Join,
    Joined,
    Phase,
    Reason,
    Refusal,
    Request,
    Secure,
    Secured,
    Sum,
    Summed,
    Train,
)
from shared.protocol.question import question_of
from shared.secagg import messages as secagg
from shared.secagg.codec import decode, encode
from shared.secagg.identity import Identity
from shared.secagg.masks import MaskFrame
from shared.secagg.noise_agreement import COUNTS, LAST_SUM, Agreement, number_of, terms_of
from shared.secagg.roster import Advert
from shared.secagg.shared_catalogues import Popularity, places
from shared.secagg.trust_statement import TrustStatement
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Enrolment, SumCoordinator
from strategies.secure_sum.summed_step import Candidates, StepOnSums

Write = Callable[..., Path]
Make = Callable[..., Settings]


class Federation:
    """Real workers, and a coordinator that asks them in this process."""

    def __init__(self, paths: list[Path], settings: Settings, root: Path) -> None:
        self.paths, self.settings, self.root = paths, settings, root
        self.files = [load(path) for path in paths]
        self.workers = [self.open(at) for at in range(len(paths))]
        self.told: tuple[bytes, ...] = ()
        self.asked: dict[int, bytes] = {}

    def open(self, at: int) -> Worker:
        name = self.files[at].name
        return Worker(
            self.files[at], state=self.root / "state" / name, ledger=self.ledger(at), simulation=True, device=torch.device("cpu")
        )

    def ledger(self, at: int) -> Path:
        return self.root / "ledger" / f"{self.files[at].name}.jsonl"

    def restart(self, at: int) -> None:
        self.workers[at].close()
        self.workers[at] = self.open(at)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()

    def ask(self, at: int, request: Request) -> Answer:
        return self.workers[at].handle(request_from(to_record(request)))

    def expect(self, kind: type[Any], at: int, request: Request) -> Any:
        answer = self.ask(at, request)
        assert isinstance(answer, kind), (answer, self.workers[at].failure)
        return answer

    def secure(self, at: int, phase: Phase, round_: int, body: Any) -> Answer:
        return self.ask(at, Secure(run="run", settings=self.settings, round=round_, phase=phase, body=encode(body)))

    def set_up(self) -> None:
        self.enrol()
        for at in range(len(self.files)):
            answer = self.secure(at, Phase.DEAL, 0, self.coordinator.deal_for(at))
            assert isinstance(answer, Secured), self.workers[at].failure
            self.coordinator.dealt(at, decode(secagg.Dealt, answer.body))
        self.coordinator.settle()

    def enrol(self) -> None:
        joined = [self.expect(Joined, at, Join(run="run", settings=self.settings)) for at in range(len(self.files))]
        closed = Candidates(self.settings, "run").close(joined, left_out=lambda *why: pytest.fail(str(why)))
        self.agreement = decode(Agreement, closed.roster.facts)
        self.coordinator = SumCoordinator(closed)

    def point(self, adapter: Arrays, factors: Factors = Factors.BOTH) -> Any:
        dimension = sum(adapter[name].size for name in trained(adapter, factors))
        quorum = self.coordinator.roster.quorum
        return self.agreement.point(dimension=dimension, quorum=quorum, clip=self.settings.training.clip)

    def request(self, round_: int, adapter: Arrays, factors: Factors = Factors.BOTH, *, body: bytes = b"") -> Sum:
        return Sum(run="run", settings=self.settings, round=round_, factors=factors, adapter=adapter, body=body)

    def begin(self, round_: int, adapter: Arrays, factors: Factors = Factors.BOTH, *, since: int = 0) -> Round:
        point = self.point(adapter, factors)
        before = secagg.Before(told=self.told, since=since and number_of(since), based=self.asked[since] if since else b"")
        question = self.asked[round_] = question_of(self.request(round_, adapter, factors), before=before)
        frame = MaskFrame(round=number_of(round_), length=point.dimension, bits=point.bits, question=question)
        return Round(self.coordinator, frame, before=before)

    def begin_popularity(self, **over: int) -> Round:
        point = self.popularity()
        question = question_of(Count(run="run", settings=self.settings, body=b""))
        frame = MaskFrame(round=COUNTS, length=point.dimension, bits=point.bits, question=question)
        return Round(self.coordinator, replace(frame, **over))

    def sum(self, at: int, work: Round, adapter: Arrays, factors: Factors = Factors.BOTH) -> Answer:
        return self.ask(at, self.request(work.frame.round - LAST_SUM, adapter, factors, body=encode(work.mask_for(at))))

    def play(self, round_: int, adapter: Arrays, factors: Factors = Factors.BOTH, *, since: int = 0) -> np.ndarray:
        """A whole round; the decoded sum."""
        work = self.begin(round_, adapter, factors, since=since)
        for at in range(len(self.files)):
            answer = self.sum(at, work, adapter, factors)
            assert isinstance(answer, Summed), self.workers[at].failure
            work.masked(at, decode(secagg.Masked, answer.body))
        for at in range(len(self.files)):
            answer = self.secure(at, Phase.UNMASK, round_, work.unmask_for(at))
            assert isinstance(answer, Secured), self.workers[at].failure
            work.unmasked(at, decode(secagg.Unmasked, answer.body))
        return self.point(adapter, factors).decode(work.sum())

    def popularity(self) -> Any:
        """The fixed point of round 0."""
        return self.agreement.popularity_point(quorum=self.coordinator.roster.quorum, settings=self.settings)

    def count(self, at: int, work: Round) -> Answer:
        return self.ask(at, Count(run="run", settings=self.settings, body=encode(work.mask_for(at))))

    def play_popularity(self) -> np.ndarray:
        """The whole of round 0; the decoded sum."""
        point, work = self.popularity(), self.begin_popularity()
        for at in range(len(self.files)):
            answer = self.count(at, work)
            assert isinstance(answer, Summed), self.workers[at].failure
            work.masked(at, decode(secagg.Masked, answer.body))
        for at in range(len(self.files)):
            answer = self.secure(at, Phase.UNMASK, 0, work.unmask_for(at))
            assert isinstance(answer, Secured), self.workers[at].failure
            work.unmasked(at, decode(secagg.Unmasked, answer.body))
        return point.decode(work.sum())

    def tell(self, at: int, counts: np.ndarray, noise: float) -> Answer:
        popularity = Popularity(counts=counts.astype("<f4").tobytes(), noise=noise)
        # One catalogue is shared in these tests, if any.
        self.told = self.told or (popularity.digest,)
        return self.secure(at, Phase.POPULARITY, 0, popularity)

    def prior(self, at: int) -> np.ndarray:
        return self.workers[at]._session.run.state.prior.numpy()

    def charges(self, at: int) -> list[tuple[str, int]]:
        return [(str(entry.kind), entry.round) for entry in read_ledger(self.ledger(at)).entries]


@pytest.fixture
def federation(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    made: list[Federation] = []

    def make(count: int = 2, *, catalogues: Sequence[int] | None = None, **over: Any) -> Federation:
        sizes = catalogues or [10 + at for at in range(count)]
        paths = [
            write_platform(f"p{at}", seed=at, items=items, users=24 + at, declared=30 + 10 * at) for at, items in enumerate(sizes)
        ]
        settings = tiny_settings(**{"strategy": "secure-sum", "rounds": 3, "privacy": {"noise": "distributed"}, **over})
        made.append(Federation(paths, settings, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Eyes:
    """Sees what platforms sum and which noise they add, one entry per platform and round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums: list[np.ndarray] = []
        self.noise: list[np.ndarray] = []
        gradient, noise = Trainer.gradient, mechanism.noise_share

        def one_by_one(trainer: Trainer, parameters: Any, names: Any, bank: Any, picked: np.ndarray) -> BoundedSum:
            # The oracle: users one at a time.
            each = [gradient(trainer, parameters, names, bank, picked[user : user + 1]) for user in range(len(picked))]
            self.sums.append(sum(part.vector() for part in each))
            return gradient(trainer, parameters, names, bank, picked)

        def seen(point: Any, random: Any) -> np.ndarray:
            self.noise.append(noise(point, random))
            return self.noise[-1]

        monkeypatch.setattr(Trainer, "gradient", one_by_one)
        monkeypatch.setattr(mechanism, "noise_share", seen)


def nobody(trainer: Trainer, parameters: Any, names: Any, bank: Any, picked: Any) -> BoundedSum:
    """A sum over no user, in place of `Trainer.gradient`."""
    return nothing({name: tuple(parameters[name].shape) for name in names}, bound=trainer.mechanism.clip)


def test_the_sum_is_central_dp_sgds_step_on_the_pooled_users(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same noise, platforms' sum is the sum over all their sampled users, and the next adapter is plain Adam's."""
    made = federation(3)
    eyes = Eyes(monkeypatch)
    made.set_up()
    adapter = dict(initial(made.settings))
    names = list(adapter)
    reference, central = (
        Adam(learning_rate=made.settings.training.learning_rate),
        {n: torch.tensor(v) for n, v in adapter.items()},
    )
    step = StepOnSums(made.settings)
    users = made.settings.training.sample_rate * sum(file.users for file in made.files)
    for round_ in (1, 2):
        decoded = made.play(round_, adapter)
        point = made.point(adapter)
        # A coordinate beyond the box is cut to it.
        boxed = [np.clip(one, -point.box / point.scale, point.box / point.scale) for one in eyes.sums[-3:]]
        pooled = sum(boxed) + sum(eyes.noise[-3:]) / point.scale
        # Each platform rounds by less than one step.
        assert np.abs(decoded - pooled).max() < 3 / point.scale
        assert np.abs(sum(eyes.sums[-3:])).max() > 100 / point.scale
        change, start = {}, 0
        for name in names:
            change[name] = -decoded[start : start + adapter[name].size].reshape(adapter[name].shape) / users
            start += adapter[name].size
        adapter = step.step(adapter, change)
        gradients = {name: torch.tensor(-change[name], dtype=torch.float32) for name in names}
        reference.step(central, gradients)
        for name in names:
            np.testing.assert_allclose(adapter[name], central[name].numpy(), rtol=1e-4, atol=1e-6)


def test_the_noise_of_all_shares_is_what_was_agreed(federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no gradient at all: the decoded sum is the noise. A share left out, or halved, is seen."""
    made = federation(2)
    made.set_up()
    monkeypatch.setattr(Trainer, "gradient", nobody)
    adapter = initial(made.settings)
    found = made.play(1, adapter)
    point = made.point(adapter)
    quorum = made.coordinator.roster.quorum
    assert quorum.honest < len(made.files)
    wanted = point.noise * math.sqrt(len(made.files) / quorum.honest)
    assert found.std() == pytest.approx(wanted, rel=6 / math.sqrt(2 * len(found)))
    assert point.noise_multiplier >= max(worker._session.run.plan.noise_multiplier for worker in made.workers)


class TestCharges:
    @pytest.fixture
    def alone(self, federation: Any) -> Federation:
        made = federation(1)
        made.set_up()
        return made

    def test_every_round_is_charged_once_as_the_integer_mechanism(self, alone: Federation) -> None:
        adapter = initial(alone.settings)
        alone.play(1, adapter)
        alone.play(2, adapter)
        alone.play(3, adapter)
        entries = read_ledger(alone.ledger(0)).entries
        assert [(str(entry.kind), entry.round) for entry in entries] == [
            ("popularity", 0),
            ("train", 1),
            ("train", 2),
            ("train", 3),
        ]
        point = alone.point(adapter)
        for entry in entries[1:]:
            assert entry.release.integers == point.integers
            assert entry.release.noise_multiplier == alone.agreement.noise_multiplier
            assert entry.release.steps == 1
        assert entries[-1].epsilon <= 50.0

    def test_a_crash_after_the_charge_loses_no_charge_and_makes_no_second(
        self, alone: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = initial(alone.settings)
        work = alone.begin(1, adapter)
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "gradient", lambda *_: (_ for _ in ()).throw(RuntimeError("u17")))
            answer = alone.sum(0, work, adapter)
            assert isinstance(answer, Refusal) and answer.reason is Reason.FAILED
        assert alone.charges(0) == [("popularity", 0), ("train", 1)]
        alone.restart(0)
        assert isinstance(alone.sum(0, work, adapter), Summed)
        assert alone.charges(0) == [("popularity", 0), ("train", 1)]

    def test_the_same_question_has_the_same_answer_and_no_second_charge(self, alone: Federation) -> None:
        adapter = initial(alone.settings)
        work = alone.begin(1, adapter)
        first = alone.sum(0, work, adapter)
        alone.restart(0)
        again = alone.sum(0, work, adapter)
        assert isinstance(first, Summed) and isinstance(again, Summed)
        assert first.body == again.body
        assert len(alone.charges(0)) == 2

    def test_another_question_in_the_round_is_refused_and_not_charged(self, alone: Federation) -> None:
        adapter = initial(alone.settings)
        work = alone.begin(1, adapter)
        alone.sum(0, work, adapter)
        moved = {name: value + 1 for name, value in adapter.items()}
        for asked in (moved, adapter):
            answer = alone.sum(0, work, asked, Factors.BOTH if asked is moved else Factors.B)
            assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
        assert len(alone.charges(0)) == 2

    def test_an_update_in_clear_is_not_to_be_had(self, alone: Federation) -> None:
        request = Train(run="run", settings=alone.settings, round=1, factors=Factors.BOTH, adapter=initial(alone.settings))
        answer = alone.ask(0, request)
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert alone.charges(0) == [("popularity", 0)]

    @pytest.mark.parametrize("change", [{"length": 7}, {"bits": 31}])
    def test_a_question_for_other_words_is_not_charged(self, alone: Federation, change: dict[str, int]) -> None:
        adapter = initial(alone.settings)
        work = alone.begin(1, adapter)
        work.frame = replace(work.frame, **change)
        answer = alone.sum(0, work, adapter)
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert alone.charges(0) == [("popularity", 0)]


class TestPopularity:
    """Round 0: two of three platforms have one catalogue."""

    @pytest.fixture
    def made(self, federation: Any) -> Federation:
        made = federation(catalogues=[11, 11, 9], secure={"colluders": 0})
        made.set_up()
        return made

    def counts(self, made: Federation, at: int) -> np.ndarray:
        """A platform's own counts in the order of its sorted item ids."""
        platform = made.workers[at]._platform
        counts = bounded_counts(platform.split, platform.tables, seed=made.settings.seed).vector()
        return counts[np.argsort(np.array(platform.tables.item_ids))]

    def test_platforms_of_one_catalogue_learn_what_both_know(self, made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mechanism, "noise_share", lambda point, random: np.zeros(point.dimension, np.int64))
        assert [one.items for one in made.agreement.catalogues] == [11]
        found, point = made.play_popularity(), made.popularity()
        pooled = self.counts(made, 0) + self.counts(made, 1)
        assert np.abs(found - pooled).max() < 3 / point.scale < 0.1
        for at in (0, 1):
            assert isinstance(made.tell(at, found, 0.7), Secured)
            ids = made.workers[at]._platform.tables.item_ids
            wanted = dict(zip(sorted(ids), log_popularity(found.astype(np.float32).astype(np.float64), 0.7), strict=True))
            np.testing.assert_allclose(made.prior(at), [wanted[name] for name in ids], rtol=1e-5)

    def test_the_noise_is_what_was_agreed(self, made: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over many coordinates, of which no user has any. A share left out, or halved, is seen."""
        agreed = replace(made.agreement.catalogues[0], items=30_000)
        point = replace(made.agreement, catalogues=(agreed,)).popularity_point(
            quorum=made.coordinator.roster.quorum, settings=made.settings
        )
        total = sum(mechanism.noised_steps(np.zeros(point.dimension), point, random) for random in self.sources(3))
        wanted = point.noise * math.sqrt(3 / made.coordinator.roster.quorum.honest)
        assert (total / point.scale).std() == pytest.approx(wanted, rel=6 / math.sqrt(2 * point.dimension))
        assert point.noise >= made.settings.privacy.prior_noise_multiplier

    @staticmethod
    def sources(count: int) -> list[Any]:
        from client.privacy.noise_sources import SeededNoise

        return [SeededNoise(0, f"p{at}", "prior", 0) for at in range(count)]

    def test_what_is_summed_has_every_platforms_share_of_the_noise(
        self, made: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of platforms whose catalogue is another, too: the honest survivors that are counted on may be those."""
        seen: list[np.ndarray] = []
        share = mechanism.noise_share
        monkeypatch.setattr(mechanism, "noise_share", lambda point, random: seen.append(share(point, random)) or seen[-1])
        found, point = made.play_popularity(), made.popularity()
        pooled = self.counts(made, 0) + self.counts(made, 1)
        assert len(seen) == 3 and all(one.any() for one in seen)
        assert np.abs(found - pooled - sum(seen) / point.scale).max() < 3 / point.scale

    def test_rows_are_charged_once_by_whose_they_are(self, made: Federation) -> None:
        assert [made.charges(at) for at in range(3)] == [[], [], [("popularity", 0)]]
        found, point = made.play_popularity(), made.popularity()
        assert [made.charges(at) for at in range(3)] == [[("popularity", 0)]] * 3
        for at in (0, 1):
            entry = read_ledger(made.ledger(at)).entries[0]
            assert entry.release.integers == point.integers
            assert entry.release.noise_multiplier == made.settings.privacy.prior_noise_multiplier
            made.tell(at, found, 1.0)
            before = made.prior(at).copy()
            made.restart(at)
            assert isinstance(made.tell(at, found + 1, 1.0), Secured)  # said again, or otherwise: nothing changes
            assert (made.prior(at) == before).all()
        adapter = initial(made.settings)
        for round_ in (1, 2, 3):
            made.play(round_, adapter)
        for at in range(3):
            worker = made.workers[at]
            assert read_ledger(made.ledger(at)).epsilon <= worker._session.run.plan.epsilon <= 50.0

    def test_an_answer_that_read_rows_leaves_at_a_public_moment(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The platform whose catalogue no other has counts its items while it deals."""
        made, seen = federation(catalogues=[11, 11, 9], secure={"colluders": 0}), list[tuple[str, bool, bool]]()
        read, waited = list[str](), list[float]()
        ask, sums = made.ask, RunContext.sum_over_users
        monkeypatch.setattr(RunContext, "sum_over_users", lambda *args, **facts: read.append("users") or sums(*args, **facts))
        monkeypatch.setattr(Pace, "wait", lambda self, began: waited.append(began))

        def watched(at: int, request: Any) -> Any:
            read.clear(), waited.clear()
            answer = ask(at, request)
            seen.append((f"{request.kind} {getattr(request, 'phase', '')}", bool(read), bool(waited)))
            return answer

        monkeypatch.setattr(made, "ask", watched)
        made.set_up()
        made.play_popularity()
        assert {kind for kind, reads, _ in seen if reads} == {"secure deal", "count "}
        assert all(waits for _, reads, waits in seen if reads)
        assert any(not waits for *_, waits in seen)

    def test_the_same_question_has_the_same_answer(self, made: Federation) -> None:
        work = made.begin_popularity()
        first = made.count(0, work)
        made.restart(0)
        again = made.count(0, work)
        assert isinstance(first, Summed) and isinstance(again, Summed) and first.body == again.body
        assert made.charges(0) == [("popularity", 0)]

    def test_nothing_is_trained_before_it_is_known(self, made: Federation) -> None:
        adapter = initial(made.settings)
        made.told = (bytes(32),)
        answer = made.sum(0, made.begin(1, adapter), adapter)
        assert isinstance(answer, Refusal) and answer.reason is Reason.ROUND
        assert made.charges(0) == []

    def test_a_round_given_up_leaves_all_items_alike(self, made: Federation) -> None:
        assert isinstance(made.tell(0, np.zeros(0), 0.0), Secured)
        np.testing.assert_allclose(made.prior(0), -math.log(11))
        assert made.charges(0) == []

    @pytest.mark.parametrize("at, items", [(0, 9), (0, 12), (2, 9), (2, 11)])
    def test_what_is_not_its_own_is_refused(self, made: Federation, at: int, items: int) -> None:
        known = made.workers[at]._session.run.state.prior
        answer = made.tell(at, np.ones(items), 1.0)
        if known is None:
            assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert made.workers[at]._session.run.state.prior is known

    @pytest.mark.parametrize("change", [{"length": 12}, {"bits": 31}])
    def test_a_question_for_other_words_is_not_charged(self, made: Federation, change: dict[str, int]) -> None:
        answer = made.count(0, made.begin_popularity(**change))
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert made.charges(0) == []

    def test_without_a_shared_catalogue_there_is_no_such_round(self, federation: Any) -> None:
        made = federation(2)
        made.set_up()
        assert made.agreement.catalogues == () and places(()) == {}
        answer = made.count(0, Round(made.coordinator, MaskFrame(round=COUNTS, length=10, bits=18, question=bytes(32))))
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
        assert made.charges(0) == [("popularity", 0)]


def test_less_noise_than_a_platform_needs_is_refused(federation: Any) -> None:
    made = federation(1)
    answer = made.expect(Joined, 0, Join(run="run", settings=made.settings))
    agreement = Agreement(noise_multiplier=answer.noise_multiplier * 0.99, batch=1000.0)
    enrolment = Enrolment(terms_of(made.settings, "run"))
    enrolment.add(decode(Advert, answer.keys), platform="p0")
    refused = made.secure(0, Phase.DEAL, 0, SumCoordinator(enrolment.close(encode(agreement))).deal_for(0))
    assert isinstance(refused, Refusal) and refused.reason is Reason.SETTINGS


def test_secure_questions_are_not_for_runs_with_local_noise(federation: Any) -> None:
    made = federation(1, strategy="fedavg", privacy={"noise": "local"})
    joined = made.expect(Joined, 0, Join(run="run", settings=made.settings))
    assert joined.keys == b""
    answer = made.secure(0, Phase.CONFIRM, 1, secagg.Confirm(round=1, survivors=(0,)))
    assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE


class TestWhatStays:
    def test_b_of_fedsa_is_trained_and_noised_here(self, federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        made = federation(1, strategy="fedsa")
        made.set_up()
        adapter = initial(made.settings)
        monkeypatch.setattr(Trainer, "gradient", nobody)
        seen: list[torch.Tensor] = []
        original = Adam.step

        def watching(self: Adam, parameters: Any, gradients: Any) -> None:
            seen.extend(value.double().flatten() for value in gradients.values())
            original(self, parameters, gradients)

        monkeypatch.setattr(Adam, "step", watching)
        decoded = made.play(1, adapter, Factors.A)
        assert len(decoded) == sum(adapter[name].size for name in trained(adapter, Factors.A))
        noise = torch.cat(seen) * made.settings.training.sample_rate * made.files[0].users
        point = made.point(adapter, Factors.A)
        # All of the noise, not a share of it: nobody else adds to what stays.
        assert float(noise.std()) == pytest.approx(point.noise, rel=6 / math.sqrt(2 * len(noise)))
        local = made.workers[0]._session.run.state.local
        assert all(local[name].abs().sum() > 0 for name in trained(adapter, Factors.B))

    def test_its_b_is_not_summed(self, federation: Any) -> None:
        made = federation(1, strategy="fedsa")
        made.set_up()
        adapter = initial(made.settings)
        work = made.begin(1, adapter, Factors.BOTH)
        answer = made.sum(0, work, adapter, Factors.BOTH)
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE


class TestOutgoing:
    @pytest.fixture
    def summed(self) -> Summed:
        body = encode(secagg.Masked(consent=bytes(64), words=bytes(30)))
        return Summed(run="run", platform="p0", round=1, users=30, epsilon=1.0, ledger="", seconds=0.1, body=body)

    def leave(self, answer: Answer, path: Path) -> Answer:
        return checked(
            answer, platform=load(path), layout={"head.lora_A": (2, 10)}, rank=2, items=3, simulation=False, pace=Pace(step=0.0)
        )

    def test_a_masked_sum_may_leave(self, write_platform: Write, summed: Summed) -> None:
        path = write_platform("p0", declared=30)
        assert self.leave(summed, path) is summed  # 20 words of 12 bits

    @pytest.mark.parametrize(
        "leak",
        [
            {"users": 29},
            {"platform": "p1"},
            {"seconds": 0.123},
            {"body": b"u17 bought zebrafinch"},
            {"body": encode(secagg.Masked(consent=bytes(64), words=bytes(31)))},
            {"body": encode(secagg.Unmasked(shares=bytes(36)))},
        ],
        ids=["a count", "another's name", "a fine timing", "words", "another length", "another kind"],
    )
    def test_anything_else_is_stopped(self, write_platform: Write, summed: Summed, leak: dict[str, Any]) -> None:
        with pytest.raises(PrivacyError):
            self.leave(replace(summed, **leak), write_platform("p0", declared=30))

    def test_of_trust_that_in_the_platform_file_alone(self, write_platform: Write) -> None:
        own, video, news = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
        path = write_platform("p0", declared=30)
        joined = Joined(
            run="run", platform="p0", users=30, items=3, budget=8.0, delta=1e-5, planned_epsilon=7.0, noise_multiplier=1.0,
            signal_to_noise=2.0, rank=2,
        )  # fmt: skip

        def leave(trusted: dict[str, bytes], **over: str) -> Answer:
            said = TrustStatement.of(trusted, **{"run": "run", "platform": "p0", **over}, identity=own)
            return checked(
                replace(joined, trust=encode(said)), platform=load(path), layout={}, rank=2, items=3, simulation=False,
                pace=Pace(step=0.0), peers={"video": video.public},
            )  # fmt: skip

        assert leave({"video": video.public}) and leave({})
        for trusted in ({"video": news.public}, {"video": video.public, "news": news.public}):
            with pytest.raises(PrivacyError, match="trust in an identity"):
                leave(trusted)
        for over in ({"run": "other"}, {"platform": "p1"}):
            with pytest.raises(PrivacyError, match="another platform's trust"):
                leave({"video": video.public}, **over)

    def test_phases_carry_their_own_kind_alone(self, write_platform: Write) -> None:
        path = write_platform("p0", declared=30)
        good = encode(secagg.Confirmed(signature=bytes(64)))
        answer = Secured(run="run", platform="p0", round=1, phase=Phase.CONFIRM, body=good)
        assert self.leave(answer, path) is answer
        for change in ({"phase": Phase.UNMASK}, {"body": good[:-1]}, {"body": b"u17"}):
            with pytest.raises(PrivacyError):
                self.leave(replace(answer, **change), path)


def test_float_sums_keep_to_the_slack_that_is_accounted_for() -> None:
    """Users of norm 1 each: the clip's float64 sum is far nearer to the exact one than the accountant allows for."""
    from client.privacy.mechanism import Mechanism
    from client.training.per_user_gradients import clip
    from shared.secagg.fixed_point import SLACK

    random = np.random.default_rng(0)
    users = torch.tensor(random.normal(0.3, 1, (5000, 50)), dtype=torch.float32)
    users /= users.norm(dim=1, keepdim=True)
    bound = Mechanism(users=5000, sample_rate=0.5, clip=1.0, noise_multiplier=1.0, dimension=50)
    found = clip({"x": users}, torch.ones(5000, dtype=torch.bool), bound).vector()
    weights = 1 / np.maximum(np.linalg.norm(users.double().numpy(), axis=1), 1.0)
    assert np.linalg.norm(found - (weights[:, None] * users.double().numpy()).sum(0)) < SLACK / 1e6


def test_a_platform_may_ask_for_more_suspicion(tiny_settings: Make) -> None:
    from client.config.participation_policy import ParticipationPolicy

    settings = tiny_settings(strategy="secure-sum", secure={"colluders": 2})
    terms = {"backbones": (settings.model.backbone,)}
    ParticipationPolicy.model_validate({**terms, "colluders": 2}).require_settings(settings, users=40)
    with pytest.raises(PrivacyError, match=r"secure\.colluders = 2"):
        ParticipationPolicy.model_validate({**terms, "colluders": 3}).require_settings(settings, users=40)
    ParticipationPolicy.model_validate({**terms, "colluders": 3}).require_settings(tiny_settings(), users=40)
