"""A deployed run at the coordinator: whom it believes, what its journal says, and how it goes on after an attempt that failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.app import app
from client.messenger import worker_link as link
from server.deployment import launch as launching
from server.deployment.flower_control import FlowerRun, Unreachable
from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import ATTEMPT, Launch, federate_deployed, quotes_of, record, recorded
from server.deployment.provisioning import create_coordinator_folder
from server.deployment.resumable_run import deployed
from server.monitoring.journal import EVENTS, Journal, read_events, read_state
from server.monitoring.run_events import EarlyStop, Event, Kind, Outcome
from server.operators.operator_log import AlteredLog, NotedHead
from server.operators.restored_state import seen_note
from server.run.federation import run_federation
from server.run.quotes import DryRun, QuoteLine
from shared.base.errors import ExitCode, FedfuseError, InputError, StorageError
from shared.base.settings import Settings
from shared.model.update_bound import largest_change
from shared.protocol.messages import Join, Joined, Request, Train, Update
from simulations.in_process_grid import InProcessGrid
from tests.support.control_double import ControlDouble

Make = Callable[..., Settings]
COUNT = iter(range(1000))


class Platform:
    """Adds `step` to every parameter in every round; says that it is `name`."""

    def __init__(self, name: str, *, step: float = 0.01, silent: tuple[int, ...] = ()) -> None:
        self.name, self.step, self.silent = name, step, silent
        self.asked: list[object] = []
        self.joins = 0

    def handle(self, request: Request) -> Any:
        if isinstance(request, Join):
            self.joins += 1
            return Joined(run=request.run, platform=self.name, users=9, items=5, budget=8.0, delta=1e-5, planned_epsilon=7.0,
                          noise_multiplier=1.0, signal_to_noise=2.0)  # fmt: skip
        if not isinstance(request, Train) or request.round in self.silent:
            raise ConnectionError
        self.asked.append(request.round)
        change = {name: np.full_like(value, self.step) for name, value in request.adapter.items()}
        return Update(
            run=request.run, platform=self.name, round=request.round, users=9, epsilon=1.0, ledger="", seconds=0.1, change=change
        )


@pytest.fixture
def federate_with(tiny_settings: Make, tmp_path: Path) -> Iterator[Callable[..., tuple[Outcome, list[Event]]]]:
    keys: list[str] = []

    def run(
        *platforms: Platform, names: dict[int, str], before: Callable[[], object] = lambda: None, **over: Any
    ) -> tuple[Outcome, list[Event]]:
        events: list[Event] = []
        nodes = {}
        for number, platform in enumerate(platforms, start=2):
            keys.append(f"deployed-{len(keys)}-{platform.name}")
            link.register(keys[-1], link.Direct(platform))
            nodes[number] = {"link": keys[-1]}
        with InProcessGrid(app=app, nodes=nodes) as grid:
            outcome = run_federation(
                grid=grid, settings=tiny_settings(rounds=2, reply_timeout=10.0, **over), run="run", out=tmp_path / "run",
                nodes=len(nodes), events=events.append, names=lambda: names, wait=1.0, export=lambda *_: None, before=before,
            )  # fmt: skip
        return outcome, events

    yield run
    for key in keys:
        link.forget(key)


class TestWhomItBelieves:
    def test_a_node_speaks_for_the_platform_that_it_was_approved_as(self, federate_with: Callable[..., Any]) -> None:
        thief = Platform("shop")
        outcome, events = federate_with(Platform("shop"), thief, names={2: "shop", 3: "video"})
        assert set(outcome.tallies) == {"shop"} and thief.asked == []
        assert any("speaks for 'shop', and is approved as 'video'" in event.text for event in events)

    def test_a_node_that_nobody_approved_stays_out(self, federate_with: Callable[..., Any]) -> None:
        stranger = Platform("ghost")
        outcome, _ = federate_with(Platform("shop"), stranger, names={2: "shop"})
        assert set(outcome.tallies) == {"shop"} and stranger.asked == []

    def test_what_platforms_showed_when_they_came_is_looked_at_before_they_are_asked(
        self, federate_with: Callable[..., Any]
    ) -> None:
        def gone_back() -> None:
            raise AlteredLog("an older copy")

        shop = Platform("shop")
        with pytest.raises(AlteredLog):
            federate_with(shop, names={2: "shop"}, before=gone_back)
        assert shop.joins == 0

    @pytest.mark.parametrize(("factor", "kept"), [(0.99, 2), (1.01, 0), (100.0, 0)])
    def test_an_update_is_no_larger_than_training_can_make_it(
        self, federate_with: Callable[..., Any], tiny_settings: Make, factor: float, kept: int
    ) -> None:
        step = factor * largest_change(tiny_settings(rounds=2))
        outcome, _ = federate_with(Platform("shop"), Platform("video", step=step), names={2: "shop", 3: "video"})
        assert (outcome.tallies["shop"].rounds, outcome.tallies["video"].rounds) == (2, kept)

    def test_a_round_of_too_few_is_not_used(self, federate_with: Callable[..., Any], tmp_path: Path) -> None:
        with pytest.raises(FedfuseError, match="1 platforms answered, and the run's settings need 2"):
            federate_with(
                Platform("shop"), Platform("video", silent=(2,)), names={2: "shop", 3: "video"}, server={"minimum_platforms": 2}
            )

    def test_a_run_of_too_few_does_not_begin(self, federate_with: Callable[..., Any]) -> None:
        with pytest.raises(FedfuseError, match=r"server\.minimum_platforms = 2"):
            federate_with(Platform("shop"), names={2: "shop"}, server={"minimum_platforms": 2})


class TestTheJournal:
    def test_events_and_state(self, tmp_path: Path) -> None:
        journal = Journal(folder=tmp_path, run="r", rounds=3)
        journal(Event(kind=Kind.JOINED, round=0, text="shop joined", platform="shop"))
        journal(Event(kind=Kind.SILENT, round=1, text="shop: no answer in time", platform="shop"))
        state = read_state(tmp_path)
        assert state is not None and state["state"] == "running"
        assert (state["platforms"]["shop"]["joined"], state["platforms"]["shop"]["trouble"]) == (True, "shop: no answer in time")
        assert [event["kind"] for _, event in read_events(tmp_path)] == ["joined", "silent"]

    def test_a_torn_line_is_left_for_later(self, tmp_path: Path) -> None:
        (tmp_path / EVENTS).write_bytes(b'{"kind": "a"}\n{"kind": "b"')
        ((position, event),) = read_events(tmp_path)
        assert event == {"kind": "a"}
        with (tmp_path / EVENTS).open("ab") as file:
            file.write(b"}\n")
        assert [event["kind"] for _, event in read_events(tmp_path, after=position)] == ["b"]

    def test_a_folder_that_cannot_be_written_ends_no_run(self) -> None:
        journal = Journal(folder=Path("/proc/nowhere"), run="r", rounds=3)
        journal(Event(kind=Kind.ROUND, round=1, text="x"))
        journal.say("failed")


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorFolder:
    folder = tmp_path_factory.mktemp("launch") / "c"
    return create_coordinator_folder(folder, host="127.0.0.1", name="spring", port=1, control_port=2, listen="127.0.0.1")


@pytest.fixture
def later(coordinator: CoordinatorFolder) -> Iterator[NotedHead]:
    """The head of a log that goes on after the coordinator's; what was noted of it is forgotten afterwards."""
    coordinator.state.mkdir(exist_ok=True)
    yield NotedHead(seq=40, hash="ab" * 32, time="2100-01-01T00:00:00Z")
    seen_note(coordinator).unlink()


class Flower(ControlDouble):
    """Stands in for the server: each attempt has a script of states, and what its ServerApp writes down."""

    def __init__(self, attempts: list[list[object]]) -> None:
        self.attempts, self.started, self.stopped = attempts, [], []  # type: ignore[var-annotated]
        self.configs: list[dict[str, Any]] = []

    def start(self, fab: Any, config: dict[str, Any]) -> int:
        self.configs.append(config)
        self.started.append(len(self.started) + 1)
        return len(self.started)

    def stop(self, run: int) -> None:
        self.stopped.append(run)

    def run(self, run: int) -> FlowerRun:
        script = self.attempts[run - 1]
        step = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(step, Exception):
            raise step
        if callable(step):
            step = step()
        status, _, result = str(step).partition(":")
        return FlowerRun(run=run, status=status, result=result, details="")


@pytest.fixture
def make_launch(
    coordinator: CoordinatorFolder, tiny_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Launch, Flower]]:
    def make(*attempts: list[object], **over: Any) -> tuple[Launch, Flower]:
        flower = Flower(list(attempts))
        monkeypatch.setattr(launching, "Control", flower)
        clock = SimpleNamespace(sleep=lambda _: None, time=time.time, monotonic=time.monotonic)
        monkeypatch.setattr(launching, "time", clock)
        monkeypatch.setattr(launching, "_ASK", 0.0)
        settings = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None})
        launch = Launch(coordinator=coordinator, run=f"run-{next(COUNT)}", settings=settings, nodes=2, **over)
        record(launch)
        return launch, flower

    return make


def says(launch: Launch, state: str, **over: Any) -> Callable[[], str]:
    def say() -> str:
        journal = Journal(folder=launch.coordinator.run(launch.run), run=launch.run, rounds=2)
        journal.say(state, **over)
        return "running"

    return say


class TestGoingOn:
    def test_a_run_that_completes(self, make_launch: Callable[..., Any]) -> None:
        launch, flower = make_launch(["pending", "running", "finished:completed"])
        federate_deployed(launch, lambda _: None)
        assert flower.started == [1]
        (config,) = flower.configs
        assert (config["run"], config["nodes"], config["training.clip"]) == (launch.run, 2, 1.0)
        from server.deployment.provisioning import make_invitation
        from shared.base.settings import settings_digest
        from shared.protocol.keys import ed25519_from_line
        from shared.protocol.run_authorization import parse_warrant

        key = ed25519_from_line(make_invitation(launch.coordinator, "shop").coordinator).public_bytes_raw()
        parse_warrant(config["warrant"]).require(key, run=launch.run, settings=settings_digest(launch.settings), now=0.0)

    def test_one_that_lost_rounds_is_not_called_done(
        self, make_launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import typer

        from server.cli.run import run_command

        launch, flower = make_launch([])
        flower.attempts[0] = [says(launch, "incomplete", why="1 of 2 rounds count", code=7), "finished:completed"]
        monkeypatch.setattr("server.deployment.folder.open_coordinator", lambda _: launch.coordinator)
        monkeypatch.setattr("server.deployment.flower_control.require_server", lambda _: None)
        with pytest.raises(typer.Exit) as caught:
            run_command(resume=launch.run)
        assert caught.value.exit_code == ExitCode.INCOMPLETE == 7
        assert "INCOMPLETE" in capsys.readouterr().out

    def test_one_that_is_done_is_not_done_once_more(
        self, make_launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from server.cli.run import run_command

        launch, flower = make_launch([])
        says(launch, "finished", why="the model is in spring/model, and version 2 of registry")()
        monkeypatch.setattr("server.deployment.folder.open_coordinator", lambda _: launch.coordinator)
        monkeypatch.setattr("server.deployment.flower_control.require_server", lambda _: None)
        with pytest.raises(InputError, match=r"has ended: .* version 2") as caught:
            run_command(resume=launch.run)
        assert f"--from {launch.run}" in caught.value.do and not flower.started

    def test_a_failed_attempt_is_followed_by_another(self, make_launch: Callable[..., Any]) -> None:
        launch, flower = make_launch(["running", "finished:failed"], ["running", "finished:completed"])
        told: list[dict[str, Any]] = []
        federate_deployed(launch, told.append)
        assert flower.started == [1, 2]
        assert [event["kind"] for event in told] == ["restart"]

    def test_but_not_for_ever(self, make_launch: Callable[..., Any]) -> None:
        launch, flower = make_launch(*[["finished:failed"] for _ in range(3)], restarts=2)
        with pytest.raises(FedfuseError, match="failed") as caught:
            federate_deployed(launch, lambda _: None)
        assert flower.started == [1, 2, 3]
        assert f"--resume {launch.run}" in caught.value.do

    @pytest.mark.parametrize("code", [ExitCode.BAD_INPUT, ExitCode.PRIVACY, ExitCode.REFUSED])
    def test_a_mistake_is_not_tried_again(self, make_launch: Callable[..., Any], code: ExitCode) -> None:
        launch, flower = make_launch([])
        flower.attempts[0] = [says(launch, "failed", why="the settings are wrong", code=int(code)), "finished:failed"]
        with pytest.raises(FedfuseError, match="the settings are wrong") as caught:
            federate_deployed(launch, lambda _: None)
        assert flower.started == [1] and caught.value.exit_code is code

    def test_nor_is_a_log_that_went_back_as_platforms_showed_meanwhile(
        self, make_launch: Callable[..., Any], later: NotedHead
    ) -> None:
        launch, flower = make_launch([])

        def shows() -> str:
            seen_note(launch.coordinator).write_bytes(later.text())
            return says(launch, "failed", why="was seen", code=int(ExitCode.STORAGE))()

        flower.attempts[0] = [shows, "finished:failed"]
        with pytest.raises(AlteredLog, match=f"action {later.seq} .* was seen"):
            federate_deployed(launch, lambda _: None)
        assert flower.started == [1]

    def test_a_server_that_went_away_is_waited_for(self, make_launch: Callable[..., Any]) -> None:
        gone = Unreachable("gone")
        launch, flower = make_launch(["running", gone, gone, "finished:failed"], ["finished:completed"])
        told: list[dict[str, Any]] = []
        federate_deployed(launch, told.append)
        assert flower.started == [1, 2]
        assert [event["kind"] for event in told].count("away") == 1  # said, and once

    def test_but_not_longer_than_agreed(self, make_launch: Callable[..., Any]) -> None:
        launch, _ = make_launch(["running", Unreachable("gone")], patience=0.0)
        with pytest.raises(FedfuseError, match="did not come back"):
            federate_deployed(launch, lambda _: None)

    @pytest.mark.parametrize("buried", [True, False])
    def test_a_killed_process_is_noticed_before_flower_does(self, make_launch: Callable[..., Any], buried: bool) -> None:
        done = subprocess.Popen([sys.executable, "-c", ""])
        # Flower waits for none of the processes that it starts: one that has died stays in the table.
        os.waitid(os.P_PID, done.pid, os.WEXITED | os.WNOWAIT)
        if buried:
            done.wait()
        launch, flower = make_launch([], ["finished:completed"])

        def dies() -> str:
            says(launch, "running")()
            path = launch.coordinator.run(launch.run) / "state.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "process": done.pid}))
            return "running"

        flower.attempts[0] = [dies, "running"]
        federate_deployed(launch, lambda _: None)
        assert (flower.started, flower.stopped) == ([1, 2], [1])
        done.wait()

    def test_a_process_that_runs_is_left_alone(self, make_launch: Callable[..., Any]) -> None:
        launch, flower = make_launch([])
        flower.attempts[0] = [says(launch, "running"), "running", "finished:completed"]  # this process's own, which runs
        federate_deployed(launch, lambda _: None)
        assert (flower.started, flower.stopped) == ([1], [])

    def test_what_an_earlier_attempt_left_is_no_death_of_this_one(self, make_launch: Callable[..., Any]) -> None:
        """The attempt before was killed; of the new one nothing is written yet."""
        done = subprocess.Popen([sys.executable, "-c", ""])
        done.wait()
        launch, flower = make_launch(["running", "running", "finished:completed"])
        says(launch, "running")()
        path = launch.coordinator.run(launch.run) / "state.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "process": done.pid, "time": time.time() - 60}))
        federate_deployed(launch, lambda _: None)
        assert (flower.started, flower.stopped) == ([1], [])

    def test_an_attempt_that_nobody_watches_is_gone_on_with(self, make_launch: Callable[..., Any]) -> None:
        launch, flower = make_launch(["running", "running", "finished:completed"])
        (launch.coordinator.run(launch.run) / ATTEMPT).write_text('{"flower": 1}')
        federate_deployed(launch, lambda _: None)
        assert flower.started == []

    def test_a_full_disk_is_a_failed_attempt(self, make_launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        launch, flower = make_launch(["finished:completed"], ["finished:completed"])
        whole, calls = launching.write_whole, []

        def full(path: Path, data: bytes, **over: Any) -> None:
            calls.append(path)
            if len(calls) == 1:
                raise StorageError("cannot be written: no space left on device")
            whole(path, data, **over)

        monkeypatch.setattr(launching, "write_whole", full)
        federate_deployed(launch, lambda _: None)
        assert (flower.started, flower.stopped) == ([1, 2], [1])  # one that nobody knows of published the model once more

    def test_what_a_run_is_is_written_down_once(self, make_launch: Callable[..., Any]) -> None:
        launch, _ = make_launch(["finished:completed"])
        assert recorded(launch.coordinator, launch.run) == launch
        later = replace(launch, run="later", start="earlier")
        record(later)
        assert recorded(later.coordinator, "later") == later
        with pytest.raises(InputError, match="is there already") as caught:
            record(launch)
        assert "--resume" in caught.value.do
        for name in ("nobody", "../../etc", ""):
            with pytest.raises(InputError, match="there is no run"):
                recorded(launch.coordinator, name)
        with pytest.raises(InputError, match="no name of a run"):
            record(replace(launch, run="No Name"))


def test_a_serverapp_needs_its_coordinators_folder(monkeypatch: pytest.MonkeyPatch, coordinator: CoordinatorFolder) -> None:
    grid: Any = None
    monkeypatch.delenv("FEDFUSE_SERVER", raising=False)
    with pytest.raises(InputError, match="no coordinator's folder"):
        deployed(grid, {"run": "r"})
    monkeypatch.setenv("FEDFUSE_SERVER", str(coordinator.folder))
    with pytest.raises(InputError, match="no name of a run"):
        deployed(grid, {"run": "../x"})


def test_a_run_asks_nobody_once_the_log_is_known_to_have_gone_back(
    monkeypatch: pytest.MonkeyPatch, coordinator: CoordinatorFolder, later: NotedHead
) -> None:
    from server.deployment import resumable_run as module

    def run(*, before: Callable[[], object], **_: Any) -> Outcome:
        before()
        seen_note(coordinator).write_bytes(later.text())
        before()
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(module, "run_federation", run)
    monkeypatch.setenv("FEDFUSE_SERVER", str(coordinator.folder))
    grid: Any = None
    with pytest.raises(AlteredLog, match="was seen"):
        deployed(grid, {"run": "back", "strategy": "fedavg", "rounds": 3})
    state = read_state(coordinator.run("back")) or {}
    assert (state["state"], state["code"]) == ("failed", ExitCode.STORAGE)


@pytest.mark.parametrize("registry", [False, True])
def test_a_run_that_lost_rounds_is_incomplete_and_not_published(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, registry: bool
) -> None:
    from server.deployment import resumable_run as module

    made = create_coordinator_folder(
        tmp_path / "made", host="localhost", name="spring", port=8000, control_port=8001, listen="127.0.0.1"
    )
    if registry:
        text = (made.folder / "server.toml").read_text().replace('registry = ""', f'registry = "{tmp_path / "models"}"')
        (made.folder / "server.toml").write_text(text)
    told: dict[str, Any] = {}

    def run(*, out: Path, patience: float, start: Any, **_: Any) -> Outcome:
        told.update(patience=patience, start=start)
        return Outcome(run="lossy", adapter={}, tallies={}, rounds=2, seconds=1.0, model=out / "model", lost=(3,))

    monkeypatch.setattr(module, "run_federation", run)
    monkeypatch.setenv("FEDFUSE_SERVER", str(made.folder))
    grid: Any = None
    monkeypatch.setattr(module, "starting_adapter", lambda model, settings: (model, settings.rounds))
    deployed(grid, {"run": "lossy", "strategy": "fedavg", "rounds": 3, "round_patience": 7.0, "start": "earlier"})
    assert told["start"] == (made.run("earlier") / "model", 3)
    with pytest.raises(InputError, match="no name of a run"):
        deployed(grid, {"run": "lossy", "start": "../earlier"})
    state = read_state(made.run("lossy")) or {}
    assert (state["state"], state["code"], told["patience"]) == ("incomplete", ExitCode.INCOMPLETE, 7.0)
    assert "2 of 3 rounds count, and given up for good were: 3" in state["why"]
    assert ("fedfuse publish" in state["why"]) == registry and not (tmp_path / "models").exists()


def test_a_run_that_stopped_early_is_finished(monkeypatch: pytest.MonkeyPatch, coordinator: CoordinatorFolder) -> None:
    from server.deployment import resumable_run as module

    def run(*, out: Path, settings: Settings, **_: Any) -> Outcome:
        assert (settings.evaluate_every, settings.patience) == (2, 3)
        stopped = EarlyStop(round=8, rounds=20, best=2, evaluations=3)
        return Outcome(run="early", adapter={}, tallies={}, rounds=8, seconds=1.0, model=out / "model", stopped=stopped)

    monkeypatch.setattr(module, "run_federation", run)
    monkeypatch.setenv("FEDFUSE_SERVER", str(coordinator.folder))
    grid: Any = None
    deployed(grid, {"run": "early", "strategy": "fedavg", "rounds": 20, "evaluate_every": 2, "patience": 3})
    state = read_state(coordinator.run("early")) or {}
    assert (state["state"], state["code"]) == ("finished", ExitCode.OK)
    assert state["why"].startswith("stopped after round 8 of 20: no improvement beyond noise for 3 evaluations, since round 2; ")


def test_two_processes_do_not_work_on_one_run(monkeypatch: pytest.MonkeyPatch, coordinator: CoordinatorFolder) -> None:
    from server.deployment import resumable_run as module

    monkeypatch.setattr(module, "LEAVING", 0.0)
    folder = coordinator.run("once")
    folder.mkdir(parents=True)
    with module._alone(folder), pytest.raises(StorageError, match="another process"), module._alone(folder):
        pass


def test_a_process_that_leaves_is_waited_for(coordinator: CoordinatorFolder) -> None:
    from server.deployment.resumable_run import _alone

    folder = coordinator.run("twice")
    folder.mkdir(parents=True)
    first = _alone(folder)
    first.__enter__()
    leaves = threading.Timer(0.5, first.__exit__, (None, None, None))
    leaves.start()
    began = time.monotonic()
    with _alone(folder):
        assert time.monotonic() - began > 0.3
    leaves.join()


class TestDryRuns:
    def test_of_what_is_asked_nothing_stays(
        self, make_launch: Callable[..., tuple[Launch, Flower]], coordinator: CoordinatorFolder
    ) -> None:
        made = DryRun(run="dry", platforms=(QuoteLine(platform="shop", takes_part=True, epsilon=2.0),))

        def answered() -> str:
            made.save(launch.folder)
            return "finished:completed"

        launch, flower = make_launch([answered])
        launch = replace(launch, dry=True, restarts=0)
        assert quotes_of(launch, lambda event: None) == made
        assert flower.configs[0]["dry_run"] is True
        assert launch.folder == coordinator.folder / "dry-runs" / launch.run and not launch.folder.exists()

    def test_what_goes_wrong_is_said(self, make_launch: Callable[..., tuple[Launch, Flower]]) -> None:
        launch, _ = make_launch(["finished:failed"])
        launch = replace(launch, dry=True, restarts=0)
        with pytest.raises(FedfuseError, match="failed"):
            quotes_of(launch, lambda event: None)
        assert not launch.folder.exists()
