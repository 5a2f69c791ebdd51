"""The coordinator against platforms that answer, refuse, fail, lie and keep silent; no model is needed for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.monitoring.run_events import Event, Kind, Outcome
from server.run.checkpoint import load_checkpoint, run_of
from shared.base.errors import FedfuseError, InputError, ProtocolError, StorageError
from shared.base.settings import Settings
from shared.model.adapter import initial, layout_of
from shared.model.backbone import shape_of
from shared.protocol.messages import Answer, Evaluate, Join, Joined, Metrics, Reason, Refusal, Request, Train, Update
from tests.support.qualities import quality_of

Make = Callable[..., Settings]


class Scripted:
    """A platform that adds `step` to every parameter in every round, unless its script says otherwise."""

    def __init__(self, name: str, *, users: int = 10, step: float = 1.0, script: Mapping[object, Any] | None = None) -> None:
        self.name, self.users, self.step, self.script = name, users, step, dict(script or {})
        self.asked: list[object] = []

    def handle(self, request: Request) -> Answer:
        key = request.round if isinstance(request, Train) else request.kind
        self.asked.append(key)
        planned = self.script.get(key)
        if isinstance(planned, Reason):
            return Refusal(run=request.run, platform=self.name, round=getattr(request, "round", 0), reason=planned)
        if isinstance(planned, Exception):
            raise planned
        if isinstance(request, Join):
            return Joined(
                run=request.run,
                platform=self.name,
                users=self.users,
                items=5,
                budget=8.0,
                delta=1e-5,
                planned_epsilon=7.0,
                noise_multiplier=1.0,
                signal_to_noise=2.0,
            )
        if isinstance(request, Evaluate):
            mean = float(np.mean([value.mean() for value in request.adapter.values()]))
            return Metrics(
                run=request.run,
                platform=self.name,
                round=request.round,
                label=request.label,
                users=self.users,
                quality=quality_of({"ndcg@10": min(abs(mean), 1.0), "hr@10": 0.5}),
                exact=True,
                epsilon=1.0,
                ledger="",
                seconds=0.1,
            )
        change = {name: np.full_like(value, self.step) for name, value in request.adapter.items()}
        update = Update(
            run=request.run,
            platform=self.name,
            round=request.round,
            users=self.users,
            epsilon=float(request.round),
            ledger="",
            seconds=0.1,
            change=change,
        )
        return planned(update) if callable(planned) else update


@pytest.fixture
def federate(tiny_settings: Make, run_linked: Callable[..., Outcome]) -> Callable[..., Outcome]:
    def run(*platforms: Scripted, out: str = "run", events: Any = None, resume: bool = False, **over: Any) -> Outcome:
        settings = tiny_settings(**{"rounds": 3, "reply_timeout": 20.0, **over})
        return run_linked(platforms, settings, out=out, events=events, resume=resume)

    return run


def moved(outcome: Outcome, settings: Settings) -> float:
    start = initial(settings)
    return float(np.mean([(outcome.adapter[name] - start[name]).mean() for name in start]))


def test_updates_are_averaged_by_declared_users(federate: Callable[..., Outcome], tiny_settings: Make) -> None:
    outcome = federate(Scripted("a", users=30, step=1.0), Scripted("b", users=10, step=-1.0))
    assert moved(outcome, tiny_settings()) == pytest.approx(3 * 0.5, abs=1e-5)
    tally = outcome.tallies["a"]
    assert (tally.rounds, tally.epsilon) == (3, 1.0)
    assert tally.bytes_up > 0 < tally.bytes_down
    assert tally.before is not None and tally.federated is not None


def test_a_platform_without_budget_leaves_and_is_not_asked_again(federate: Callable[..., Outcome]) -> None:
    spent = Scripted("a", script={2: Reason.BUDGET})
    outcome = federate(spent, Scripted("b"))
    assert outcome.rounds == 3
    assert spent.asked.count(2) == 1 and 3 not in spent.asked
    assert outcome.tallies["a"].refusals == {2: Reason.BUDGET}
    assert (outcome.tallies["a"].rounds, outcome.tallies["b"].rounds) == (1, 3)


def test_a_platform_that_does_not_join_is_left_out(federate: Callable[..., Outcome]) -> None:
    outcome = federate(Scripted("a", script={"join": Reason.NOISE}), Scripted("b"))
    assert set(outcome.tallies) == {"b"}


def test_an_error_is_forgiven_and_the_platform_asked_again(federate: Callable[..., Outcome]) -> None:
    shaky = Scripted("a", script={2: RuntimeError("u17")})
    outcome = federate(shaky, Scripted("b"))
    assert (outcome.tallies["a"].rounds, outcome.tallies["b"].rounds) == (2, 3)
    assert 3 in shaky.asked


def spoiled(how: str) -> Callable[[Update], Update]:
    from dataclasses import replace

    def spoil(update: Update) -> Update:
        change = dict(update.change)
        name = next(iter(change))
        if how == "nan":
            change[name] = np.full_like(change[name], np.nan)
        elif how == "shape":
            change[name] = change[name][:1, :1]
        elif how == "missing":
            del change[name]
        elif how == "extra":
            change["stowaway"] = np.ones((1, 1), np.float32)
        values = (
            {"round": 1} if how == "round" else {"users": 10**9} if how == "users" else {"platform": "b"} if how == "name" else {}
        )
        return replace(update, change=change, **values)

    return spoil


@pytest.mark.parametrize("how", ["nan", "shape", "missing", "extra", "round", "users", "name"])
def test_an_update_that_cannot_be_right_is_dropped(federate: Callable[..., Outcome], tiny_settings: Make, how: str) -> None:
    outcome = federate(Scripted("a", script={2: spoiled(how)}), Scripted("b", step=1.0))
    assert moved(outcome, tiny_settings()) == pytest.approx(3.0, abs=1e-5)
    assert (outcome.tallies["a"].rounds, outcome.tallies["b"].rounds) == (2, 3)


def test_a_round_without_any_update_fails_and_keeps_its_checkpoint(federate: Callable[..., Outcome], tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        federate(Scripted("a", script={2: RuntimeError("x")}))
    assert run_of(tmp_path / "run") == "run"
    assert not (tmp_path / "run" / "model").exists()


def test_nobody_joins(federate: Callable[..., Outcome]) -> None:
    with pytest.raises(FedfuseError):
        federate(Scripted("a", script={"join": Reason.SOURCES}))


def test_two_nodes_of_one_name(federate: Callable[..., Outcome]) -> None:
    with pytest.raises(ProtocolError, match="a"):
        federate(Scripted("a"), Scripted("a"))


def test_resuming_gives_the_uninterrupted_result(federate: Callable[..., Outcome], tmp_path: Path) -> None:
    straight = federate(Scripted("a", step=0.25), Scripted("b", step=0.5), out="straight")

    def stop(event: Event) -> None:
        if event.kind is Kind.ROUND and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(Scripted("a", step=0.25), Scripted("b", step=0.5), events=stop)
    again = Scripted("a", step=0.25)
    resumed = federate(again, Scripted("b", step=0.5), resume=True)
    assert all((resumed.adapter[name] == straight.adapter[name]).all() for name in straight.adapter)
    assert [key for key in again.asked if isinstance(key, int)] == [3]
    assert resumed.tallies["a"].rounds == 3
    with pytest.raises(InputError):
        federate(again)  # the folder holds a run


def test_a_checkpoint_of_other_settings_or_damaged(federate: Callable[..., Outcome], tiny_settings: Make, tmp_path: Path) -> None:
    federate(Scripted("a"))
    settings = tiny_settings(rounds=3, reply_timeout=20.0)
    layout = layout_of(shape_of(settings.model.backbone), settings.model)
    assert load_checkpoint(tmp_path / "run", run="run", settings=settings, layout=layout).round == 3
    with pytest.raises(InputError, match="clip"):
        changed = tiny_settings(rounds=3, reply_timeout=20.0, training={"clip": 3.0})
        load_checkpoint(tmp_path / "run", run="run", settings=changed, layout=layout)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError):
        run_of(tmp_path / "run")


class TestEarlyStopping:
    """Figures rise with the adapter up to 1: at once where a step is 1, ten times where it is a tenth."""

    over: Mapping[str, Any] = {
        "rounds": 9,
        "evaluate_every": 1,
        "patience": 2,
        "privacy": {"metrics_noise_multiplier": 0.05},
    }

    @staticmethod
    def asked(platform: Scripted) -> list[object]:
        return [key for key in platform.asked if key != "join"]

    def test_a_run_ends_when_figures_rise_no_more(self, federate: Callable[..., Outcome], tmp_path: Path) -> None:
        events: list[Event] = []
        platforms = Scripted("a", users=30), Scripted("b")
        outcome = federate(*platforms, events=events.append, **self.over)
        said = "stopped after round 3 of 9: no improvement beyond noise for 2 evaluations, since round 1"
        assert (outcome.rounds, outcome.lost, outcome.open, str(outcome.stopped)) == (3, (), 0, said)
        assert [event.text for event in events if event.kind is Kind.PLATEAU] == [said]
        for platform in platforms:
            assert self.asked(platform) == ["evaluate", 1, "evaluate", 2, "evaluate", 3, "evaluate"]
        evaluated = [event.text for event in events if event.kind is Kind.EVALUATED]
        assert "beyond the noise" in evaluated[1] and evaluated[3].endswith("2 of 2 in a row")
        assert f"| rounds | 3 count; {said} |" in (tmp_path / "run" / "model" / "README.md").read_text()

    def test_resumed_it_is_over_still(self, federate: Callable[..., Outcome]) -> None:
        first = federate(Scripted("a"), Scripted("b"), **self.over)
        again = Scripted("a"), Scripted("b")
        outcome = federate(*again, resume=True, **self.over)
        assert (outcome.rounds, outcome.stopped) == (3, first.stopped) and outcome.stopped is not None
        assert not any(self.asked(platform) for platform in again)

    @pytest.mark.parametrize("dies", range(12))
    def test_wherever_the_coordinator_dies_it_decides_the_same(self, federate: Callable[..., Outcome], dies: int) -> None:
        left = dies

        def stop(event: Event) -> None:
            nonlocal left
            if event.kind in (Kind.EVALUATED, Kind.ROUND, Kind.PLATEAU, Kind.PUBLISHED):
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt

        straight = federate(Scripted("a"), Scripted("b"), out="straight", **self.over)
        try:
            outcome = federate(Scripted("a"), Scripted("b"), events=stop, **self.over)
        except KeyboardInterrupt:
            outcome = federate(Scripted("a"), Scripted("b"), resume=True, **self.over)
        assert (left < 0) == (dies < 9)
        assert (outcome.rounds, outcome.stopped) == (straight.rounds, straight.stopped)

    def test_a_steady_rise_goes_on_to_the_last_round(self, federate: Callable[..., Outcome], tmp_path: Path) -> None:
        events: list[Event] = []
        outcome = federate(Scripted("a", step=0.1), Scripted("b", step=0.1), events=events.append, **self.over)
        assert (outcome.rounds, outcome.stopped) == (9, None)
        assert Kind.PLATEAU not in [event.kind for event in events]
        assert "| rounds | 9 |" in (tmp_path / "run" / "model" / "README.md").read_text()

    def test_noise_that_is_larger_than_the_rise_hides_it(self, federate: Callable[..., Outcome]) -> None:
        loud = {**self.over, "privacy": {"metrics_noise_multiplier": 10.0}}
        outcome = federate(Scripted("a", step=0.1), Scripted("b", step=0.1), **loud)
        assert outcome.stopped is not None and (outcome.stopped.round, outcome.stopped.best) == (2, 0)

    def test_what_nobody_answered_counts_for_nothing(self, federate: Callable[..., Outcome]) -> None:
        refusing = {"evaluate": Reason.SETTINGS}
        outcome = federate(Scripted("a", script=refusing), Scripted("b", script=refusing), **self.over)
        assert (outcome.rounds, outcome.stopped) == (9, None)
