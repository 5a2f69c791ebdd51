"""The worker: what leaves it, when it is charged, and what it remembers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config.platform_file import load
from client.privacy.answer_timing import Pace
from client.privacy.egress_check import checked
from client.privacy.mechanism import CountMechanism, Mechanism
from client.privacy.noise_sources import SeededNoise
from client.run import run_context
from client.run.local_session import LocalSession
from client.run.training_context import TrainingContext
from client.worker.request_handler import Worker
from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.ledger.reading import read_ledger
from shared.model.adapter import initial, layout_of
from shared.model.backbone import shape_of
from shared.privacy.releases import ReleaseKind
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import (
    Answer,
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Metrics,
    Reason,
    Refusal,
    Request,
    Train,
    Update,
)
from tests.support.identities import with_identity

Write = Callable[..., Path]
Make = Callable[..., Settings]
CANARIES = ("zebrafinch", "quokka", "axolotl", "u17", "wombatnote")
PRIVATE = "epsilon = 20.0\ndelta = 1e-3"


def allowing(backbone: str) -> str:
    """The terms of a deployed platform that lets a run load that backbone."""
    return f"[federation]\nbackbones = [{json.dumps(backbone)}]\nanswer_step = 0.1\nminimum_noise_multiplier = 0.05\n"


class Bench:
    """A worker on small files, and the requests that it gets."""

    def __init__(self, path: Path, settings: Settings, root: Path, *, simulation: bool = True) -> None:
        self.path, self.settings, self.root, self.simulation = path, settings, root, simulation
        self.ledger = root / "ledger.jsonl"
        self.worker = self.open()

    def open(self) -> Worker:
        state = with_identity(self.root / "state")
        return Worker(load(self.path), state=state, ledger=self.ledger, simulation=self.simulation, device=torch.device("cpu"))

    def restart(self) -> None:
        self.worker.close()
        self.worker = self.open()

    def join(self, **over: Any) -> Answer:
        return self.ask(Join(run="run-1", settings=over.get("settings", self.settings)))

    def train(self, round_: int, **over: Any) -> Answer:
        values = {
            "run": "run-1",
            "settings": self.settings,
            "round": round_,
            "factors": Factors.BOTH,
            "adapter": initial(self.settings),
        }
        return self.ask(Train(**{**values, **over}))

    def evaluate(self, label: Label = Label.BEFORE, round_: int = 0) -> Answer:
        return self.ask(Evaluate(run="run-1", settings=self.settings, round=round_, label=label, adapter=initial(self.settings)))

    def ask(self, request: Request) -> Answer:
        return self.worker.handle(request_from(to_record(request)))

    def entries(self) -> list[tuple[str, int]]:
        return [(str(entry.kind), entry.round) for entry in read_ledger(self.ledger).entries]


@pytest.fixture
def bench(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(write_platform(declared=41), tiny_settings(), tmp_path / "a")
    yield made
    made.worker.close()


@pytest.fixture
def deployed(write_platform: Write, tiny_settings: Make, tiny_bert: str, tmp_path: Path) -> Iterator[Bench]:
    settings = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None})
    path = write_platform(declared=41, privacy=PRIVATE, extra=allowing(tiny_bert))
    made = Bench(path, settings, tmp_path / "d", simulation=False)
    yield made
    made.worker.close()


def expect(kind: type[Any], answer: Answer, bench: Bench) -> Any:
    assert isinstance(answer, kind), (answer, bench.worker.failure)
    return answer


class TestARun:
    def test_join_train_evaluate(self, bench: Bench) -> None:
        joined = expect(Joined, bench.join(), bench)
        assert (joined.users, joined.items, joined.budget) == (41, 12, 50.0)
        assert joined.planned_epsilon <= 50.0
        update = expect(Update, bench.train(1), bench)
        assert update.users == 41
        assert any(value.any() for value in update.change.values())
        metrics = expect(Metrics, bench.evaluate(Label.FEDERATED, 1), bench)
        assert metrics.exact
        assert bench.entries() == [("popularity", 0), ("train", 1)]
        assert metrics.ledger == read_ledger(bench.ledger).head
        assert update.epsilon <= joined.planned_epsilon

    def test_the_whole_plan_costs_what_was_announced(self, bench: Bench) -> None:
        joined = expect(Joined, bench.join(), bench)
        bench.train(1)
        last = expect(Update, bench.train(2), bench)
        # Planned for the coarsest grid that there may be; a finer one costs a little less.
        assert 0.99 * joined.planned_epsilon < last.epsilon <= joined.planned_epsilon

    def test_a_repeated_question_gets_the_same_answer_and_no_second_charge(self, bench: Bench) -> None:
        first = expect(Update, bench.train(1), bench)
        charged = bench.entries()
        again = expect(Update, bench.train(1), bench)
        bench.restart()
        after = expect(Update, bench.train(1), bench)
        for other in (again, after):
            assert all((first.change[name] == other.change[name]).all() for name in first.change)
            assert (other.epsilon, other.ledger) == (first.epsilon, first.ledger)
        assert bench.entries() == charged

    def test_a_new_process_goes_on_where_the_old_one_was(self, bench: Bench, write_platform: Write, tmp_path: Path) -> None:
        bench.train(1)
        bench.restart()
        resumed = expect(Update, bench.train(2), bench)
        other = Bench(bench.path, bench.settings, tmp_path / "b")
        other.train(1)
        straight = expect(Update, other.train(2), other)
        assert all((resumed.change[name] == straight.change[name]).all() for name in resumed.change)
        other.worker.close()

    def test_a_run_that_trains_has_the_items_vectors_for_a_taste_map(
        self, write_platform: Write, tiny_settings: Make, tmp_path: Path
    ) -> None:
        made = Bench(write_platform(), tiny_settings(preferences={"map": 4}), tmp_path / "m")
        expect(Joined, made.join(), made)
        vectors = made.worker._session.run.item_vectors()  # type: ignore[union-attr]
        assert vectors.shape == (12, 32) and np.isfinite(vectors).all()
        made.worker.close()

    def test_frozen_factors_do_not_move(self, bench: Bench) -> None:
        update = expect(Update, bench.train(1, factors=Factors.B), bench)
        for name, value in update.change.items():
            assert value.any() == name.endswith("lora_B")

    @pytest.mark.parametrize("fusion", ["attention", "concat", "gated", "average", "vote"])
    @pytest.mark.parametrize("objective", ["softmax", "click"])
    def test_every_fusion_and_objective_trains(
        self, write_platform: Write, tiny_settings: Make, tmp_path: Path, fusion: str, objective: str
    ) -> None:
        settings = tiny_settings(model={"fusion": fusion}, training={"objective": objective})
        vectors = "\n".join(json.dumps({"item": f"i{item}", "vector": [item % 3 - 1.0, 0.5]}) for item in range(9))
        extra = '[sources.image]\nkind = "vectors"\npath = "v.jsonl"\ncolumns = { item = "item" }\n'
        made = Bench(write_platform(extra=extra, files={"v.jsonl": vectors + "\n"}), settings, tmp_path / fusion)
        expect(Joined, made.join(), made)
        update = expect(Update, made.train(1), made)
        assert set(update.change) == set(initial(settings))  # projectors and intercepts stay here
        made.worker.close()


class TestSampledEvaluations:
    """Above a declared number of users an evaluation reads a Poisson sample, and is planned and charged as one."""

    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        monkeypatch.setattr("shared.privacy.plan.EVALUATED", 20)
        asked: list[Any] = []
        ranks = TrainingContext.ranks

        def watched(self: TrainingContext, *given: Any, **how: Any) -> Any:
            asked.append(how["only"])
            return ranks(self, *given, **how)

        monkeypatch.setattr(TrainingContext, "ranks", watched)
        return asked

    def test_of_a_deployed_platform(self, deployed: Bench, read: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[np.ndarray] = []
        sample = CountMechanism.sample
        monkeypatch.setattr(CountMechanism, "sample", lambda self, *given: drawn.append(sample(self, *given)) or drawn[-1])
        deployed.join()
        expect(Metrics, deployed.evaluate(), deployed)
        deployed.train(1), deployed.train(2)
        expect(Metrics, deployed.evaluate(Label.FEDERATED, 2), deployed)
        run = deployed.worker._session.run  # type: ignore[union-attr]
        held_out = len(run.platform.held_out)
        assert [only.tolist() for only in read] == [only.tolist() for only in drawn]
        assert all(0 < len(only) < held_out for only in read) and read[0].tolist() != read[1].tolist()
        charged = [entry.release for entry in read_ledger(deployed.ledger).entries if entry.kind is ReleaseKind.EVALUATE]
        planned = [release for release in run.plan.releases if release.kind is ReleaseKind.EVALUATE]
        assert len(charged) == len(planned) == 2
        assert {release.sample_rate for release in [*charged, *planned]} == {20 / 41}

    def test_of_a_simulation_are_of_the_same_users(self, bench: Bench, read: list[Any]) -> None:
        bench.join()
        first = expect(Metrics, bench.evaluate(), bench)
        second = expect(Metrics, bench.evaluate(Label.FEDERATED, 1), bench)
        assert first.quality == second.quality  # of one model
        assert 0 < len(read[0]) < 30 and read[0].tolist() == read[1].tolist()

    def test_up_to_that_number_everybody_is_read(self, bench: Bench, read: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shared.privacy.plan.EVALUATED", 41)
        bench.join()
        bench.evaluate()
        assert read == [None]


class TestCharges:
    def test_the_charge_is_on_disk_before_the_noise_is_drawn(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.join()
        seen: list[list[tuple[str, int]]] = []
        privatise = Mechanism.privatise

        def watched(self: Mechanism, *args: Any) -> Any:
            seen.append(bench.entries())
            return privatise(self, *args)

        monkeypatch.setattr(Mechanism, "privatise", watched)
        bench.train(1)
        assert seen and all(("train", 1) in entries for entries in seen)

    @pytest.mark.parametrize("place", ["sample", "privatise", "save_run_state"])
    def test_a_crash_loses_no_charge(self, bench: Bench, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        bench.join()

        def crash(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(run_context if place == "save_run_state" else Mechanism, place, crash)
            with pytest.raises(KeyboardInterrupt):
                bench.train(1)
        assert bench.entries() == [("popularity", 0), ("train", 1)]
        bench.restart()
        expect(Update, bench.train(1), bench)
        # Nothing of the first attempt had left, so its charge pays for the second.
        assert bench.entries() == [("popularity", 0), ("train", 1)]
        bench.restart()
        expect(Update, bench.train(2), bench)
        assert bench.entries() == [("popularity", 0), ("train", 1), ("train", 2)]

    def test_a_platform_asked_for_half_of_the_rounds_plans_for_these_and_answers_no_more(
        self, write_platform: Write, tiny_settings: Make, tmp_path: Path
    ) -> None:
        path = write_platform(declared=41)
        noise: dict[float, float] = {}
        for part in (1.0, 0.5):
            made = Bench(path, tiny_settings(rounds=4, server={"participation": part}), tmp_path / f"{part}")
            noise[part] = expect(Joined, made.join(), made).noise_multiplier
            answers = [made.train(number) for number in range(1, 5)]
            answered = sum(isinstance(answer, Update) for answer in answers)
            assert answered == made.settings.rounds_each == 4 * part
            assert all(isinstance(one, Update) or one.reason is Reason.BUDGET for one in answers)  # type: ignore[union-attr]
            assert read_ledger(made.ledger).epsilon <= 50.0
            made.worker.close()
        assert noise[0.5] < noise[1.0]

    def test_a_platform_without_budget_refuses_and_releases_nothing(self, bench: Bench) -> None:
        bench.join()
        assert bench.worker._writer is not None
        for _ in range(2):  # somebody else's releases eat the budget of both rounds
            bench.worker._writer.charge(bench.worker._session.run.mechanism.release(2), run="other", round=1, question="5" * 64)  # type: ignore[union-attr]
        charged = bench.entries()
        answer = expect(Refusal, bench.train(1), bench)
        assert answer.reason is Reason.BUDGET
        assert bench.entries() == charged
        assert read_ledger(bench.ledger).epsilon <= 50.0

    def test_other_runs_count_against_the_budget(self, bench: Bench) -> None:
        joined = expect(Joined, bench.join(), bench)
        second = bench.ask(Join(run="run-2", settings=bench.settings))
        # Everything but the prior of the first run is unspent, so the second plan has less: more noise.
        assert expect(Joined, second, bench).noise_multiplier > joined.noise_multiplier
        assert second.planned_epsilon <= 50.0  # type: ignore[union-attr]


class TestRefusals:
    @pytest.mark.parametrize(("first", "second"), [(0, None), (3, None), (2, 1)])
    def test_rounds_out_of_order(self, bench: Bench, first: int, second: int | None) -> None:
        answer = bench.train(first)
        if second is not None:
            answer = bench.train(second)
        assert expect(Refusal, answer, bench).reason is Reason.ROUND

    def test_other_settings_in_the_same_run(self, bench: Bench, tiny_settings: Make) -> None:
        bench.train(1)
        changed = tiny_settings(training={"clip": 7.0})
        assert expect(Refusal, bench.train(2, settings=changed), bench).reason is Reason.SETTINGS

    @pytest.mark.parametrize("spoil", ["missing", "shape", "nan"])
    def test_an_adapter_that_does_not_fit(self, bench: Bench, spoil: str) -> None:
        adapter = dict(initial(bench.settings))
        name = next(iter(adapter))
        if spoil == "missing":
            del adapter[name]
        elif spoil == "shape":
            adapter[name] = adapter[name][:, 1:]
        else:
            adapter[name] = np.full_like(adapter[name], np.nan)
        assert expect(Refusal, bench.train(1, adapter=adapter), bench).reason is Reason.MESSAGE
        assert ("train", 1) not in bench.entries()

    def test_a_deployed_platform_refuses_a_simulation(self, deployed: Bench, tiny_settings: Make) -> None:
        assert expect(Refusal, deployed.join(settings=tiny_settings()), deployed).reason is Reason.SETTINGS
        assert not deployed.ledger.exists()

    @pytest.mark.parametrize("accepted", [False, True])
    def test_a_delta_of_one_user_unless_it_is_accepted(
        self, write_platform: Write, tiny_settings: Make, tiny_bert: str, tmp_path: Path, accepted: bool
    ) -> None:
        """40 declared users: a delta from 0.025 on allows to publish one of them."""
        privacy = "epsilon = 20.0\ndelta = 0.03" + accepted * "\naccept_delta = true"
        terms = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None})
        made = Bench(write_platform(privacy=privacy, extra=allowing(tiny_bert)), terms, tmp_path / "d", simulation=False)
        answer = made.join()
        assert isinstance(answer, Joined if accepted else Refusal)
        assert accepted or "1/users" in str(made.worker.failure)
        made.worker.close()

    def test_a_plan_that_is_noise(self, write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
        made = Bench(write_platform(), tiny_settings(privacy={"epsilon": 1.1}, training={"sample_rate": 0.05}), tmp_path / "n")
        assert expect(Refusal, made.join(), made).reason in (Reason.NOISE, Reason.SETTINGS)
        assert "noise" in str(made.worker.failure) or "budget" in str(made.worker.failure)
        made.worker.close()


class TestDeployed:
    def test_metrics_are_noised_and_charged(self, deployed: Bench) -> None:
        joined = expect(Joined, deployed.join(), deployed)
        metrics = expect(Metrics, deployed.evaluate(), deployed)
        assert not metrics.exact
        assert deployed.entries() == [("popularity", 0), ("evaluate", 0)]
        assert joined.planned_epsilon <= 20.0
        for round_ in (1, 2):
            expect(Update, deployed.train(round_), deployed)
        last = expect(Metrics, deployed.evaluate(Label.FEDERATED, 2), deployed)
        assert 0.99 * joined.planned_epsilon < last.epsilon <= joined.planned_epsilon

    def test_the_coordinators_epsilon_is_not_the_platforms(self, deployed: Bench, tiny_settings: Make) -> None:
        loose = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": 1e6})
        assert expect(Joined, deployed.join(settings=loose), deployed).budget == 20.0

    def test_noise_is_not_seeded(self, deployed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        expect(Joined, deployed.join(), deployed)
        monkeypatch.setattr(SeededNoise, "words", lambda *_: pytest.fail("seeded noise in a deployment"))
        expect(Update, deployed.train(1), deployed)


class TestNothingElseLeaves:
    """Canary values in every private place; every answer to every request, as bytes."""

    @pytest.fixture
    def planted(self, write_platform: Write, tiny_settings: Make, tiny_bert: str, tmp_path: Path) -> Iterator[Bench]:
        profiles = "\n".join(["user,job", *(f"u{user},zebrafinch" for user in range(30))]) + "\n"
        notes = "\n".join(["user,item,text", *(f"u{user},i{user % 12},wombatnote quokka" for user in range(30))]) + "\n"
        friends = "user,friend\n" + "\n".join(f"u{user},u{(user + 1) % 30}" for user in range(30)) + "\n"
        extra = (
            '[sources.people]\nkind = "profiles"\npath = "p.csv"\ntext = ["job"]\n'
            '[sources.notes]\nkind = "reviews"\npath = "n.csv"\n'
            '[sources.axolotl]\nkind = "social"\npath = "f.csv"\ninfluence = 1\nfriends = 1\n'
        )
        settings = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None})
        path = write_platform(
            declared=977,
            extra=extra + allowing(tiny_bert),
            files={"p.csv": profiles, "n.csv": notes, "f.csv": friends},
            privacy="epsilon = 90.0\ndelta = 1e-2\naccept_delta = true",
        )
        made = Bench(path, settings, tmp_path / "canary", simulation=False)
        yield made
        made.worker.close()

    def wire(self, answer: Answer) -> bytes:
        record = to_record(answer)
        parts = [json.dumps(dict(record["fedfuse"])).encode()]
        parts += [array.data + name.encode() for key in record if key != "fedfuse" for name, array in record[key].items()]
        return b"\n".join(parts)

    def answers(self, bench: Bench) -> list[Answer]:
        broken = dict(initial(bench.settings))
        broken.pop(next(iter(broken)))
        return [
            bench.join(),
            bench.evaluate(),
            bench.train(1),
            bench.train(1),
            bench.train(9),
            bench.train(2, adapter=broken),
            bench.train(2),
            bench.evaluate(Label.FEDERATED, 2),
        ]

    def test_no_canary_is_on_the_wire(self, planted: Bench) -> None:
        answers = self.answers(planted)
        assert [type(answer) for answer in answers] == [Joined, Metrics, Update, Update, Refusal, Refusal, Update, Metrics]
        for answer in answers:
            content = self.wire(answer)
            assert not [canary for canary in CANARIES if canary.encode() in content]
            assert getattr(answer, "users", 977) == 977

    @pytest.mark.parametrize("error", [ValueError("u17 has zebrafinch"), OSError("axolotl"), PrivacyError("quokka")])
    def test_no_error_text_is_on_the_wire(self, planted: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        planted.join()

        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(LocalSession, "train", fail)
        content = self.wire(expect(Refusal, planted.train(1), planted))
        assert not [canary for canary in CANARIES if canary.encode() in content]
        assert planted.worker.failure is error  # the platform's own operator can still see it

    @pytest.mark.parametrize(
        "leak",
        [
            {"users": 30},
            {"change": {"source.people.weight": np.ones((2, 2), np.float32)}},
            {"seconds": 1.23456},
            {"platform": "another"},
        ],
    )
    def test_a_handler_that_leaks_is_stopped(self, planted: Bench, monkeypatch: pytest.MonkeyPatch, leak: dict[str, Any]) -> None:
        from dataclasses import replace

        expect(Joined, planted.join(), planted)
        honest = LocalSession.train

        def leaking(self: LocalSession, request: Train) -> Update:
            update = honest(self, request)
            change = {**update.change, **leak.get("change", {})}
            return replace(update, **{**leak, "change": change})

        monkeypatch.setattr(LocalSession, "train", leaking)
        answer = expect(Refusal, planted.train(1), planted)
        assert isinstance(planted.worker.failure, PrivacyError)
        assert not answer.__dict__.get("change")

    def test_exact_metrics_are_stopped_outside_a_simulation(self, deployed: Bench) -> None:
        expect(Joined, deployed.join(), deployed)
        metrics = expect(Metrics, deployed.evaluate(), deployed)
        from dataclasses import replace

        layout = layout_of(shape_of(deployed.settings.model.backbone), deployed.settings.model)
        with pytest.raises(PrivacyError, match="exact metrics"):
            checked(
                replace(metrics, exact=True),
                platform=load(deployed.path),
                layout=layout,
                rank=2,
                items=12,
                simulation=False,
                pace=Pace(step=0.1),
            )


def test_privacy_off_is_said_everywhere(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    made = Bench(write_platform(), tiny_settings(privacy={"epsilon": "inf"}), tmp_path / "off")
    joined = expect(Joined, made.join(), made)
    assert (joined.budget, joined.planned_epsilon, joined.noise_multiplier) == (float("inf"), float("inf"), 0.0)
    update = expect(Update, made.train(1), made)
    assert update.epsilon == float("inf")
    assert read_ledger(made.ledger).epsilon == float("inf")
    made.worker.close()
