"""The list of runs: what each left behind, whatever became of it; followed, ended, and by whom."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import Launch, federate_deployed
from server.deployment.status import status_of
from server.monitoring.journal import Journal
from server.monitoring.run_events import Event, Kind
from server.operators.acting import acting_operator, log_of
from server.operators.rights import Right, Verb
from server.scheduling import detached
from server.scheduling.aborting import abort_run
from server.scheduling.detached import start_detached
from server.scheduling.run_list import follow_run, list_runs, run_named
from server.scheduling.run_notes import RunAborted, clear_notes, note_abort, note_failure
from server.scheduling.turns import Turn
from shared.base.errors import FedfuseError, InputError
from simulations.poc.processes import processes_in
from tests.server.conftest import tally_of
from tests.server.deployment.test_provisioning import application
from tests.support.called_command import called

Plan = Callable[..., Launch]


def played(launch: Launch, *, epsilon: dict[str, float], state: str = "finished", rounds: int = 2, **over: Any) -> Journal:
    """A run whose platforms have spent so much by its end."""
    journal = Journal(folder=launch.folder, run=launch.run, rounds=rounds)
    for name in epsilon:
        journal(Event(kind=Kind.JOINED, round=0, text=f"{name} joined", platform=name))
    tallies = {name: tally_of(name, epsilon=value, rounds=rounds) for name, value in epsilon.items()}
    journal(Event(kind=Kind.ROUND, round=rounds, text=f"round {rounds}", tallies=tallies))
    journal.say(state, **over)
    return journal


def created(launch: Launch, at: float) -> None:
    path = launch.folder / "run.toml"
    lines = [line if not line.startswith("created") else f"created = {at}" for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")


def test_every_end_has_its_word(coordinator: CoordinatorFolder, planned: Plan) -> None:
    train = {"strategy": "fedavg", "rounds": 2}
    for number, name in enumerate(("done", "part", "broken", "given-up", "ended", "killed", "new")):
        created(planned(name, train), number + 1.0)
    folder = coordinator.run
    played(replace_run(coordinator, "done"), epsilon={"shop": 1.0, "video": 0.5}, why="version 1")
    (folder("done") / "published.json").write_text('{"version": 4}')
    played(replace_run(coordinator, "part"), epsilon={"shop": 3.5}, state="incomplete", rounds=1, why="1 of 2 rounds", code=7)
    played(replace_run(coordinator, "broken"), epsilon={}, state="failed", why="settings", code=3)
    note_failure(folder("given-up"), FedfuseError("the server did not come back"))
    note_abort(folder("ended"), by="alice")
    played(replace_run(coordinator, "killed"), epsilon={"shop": 4.0}, state="running", rounds=1)
    found = {one.run: one for one in list_runs(coordinator)}
    assert list(found) == ["new", "killed", "ended", "given-up", "broken", "part", "done"]
    assert {name: (one.state, one.code) for name, one in found.items()} == {
        "done": ("finished", 0),
        "part": ("incomplete", 7),
        "broken": ("failed", 3),
        "given-up": ("failed", 1),
        "ended": ("aborted", 130),
        "killed": ("stopped", 130),
        "new": ("stopped", 130),
    }
    assert (found["done"].version, found["done"].round, found["done"].rounds, found["done"].strategy) == (4, 2, 2, "fedavg")
    assert found["done"].platforms == ("shop", "video") and found["new"].platforms == ()
    # What each has raised: 1.0 of nothing, 3.5 after 1.0, 4.0 after 3.5.
    assert [found[name].spent for name in ("done", "part", "broken", "killed")] == [1.0, 2.5, None, 0.5]
    assert found["done"].planned is None and found["done"].share == 0.25
    assert "did not come back" in found["given-up"].why and "--resume killed" in found["killed"].why


def test_a_run_that_is_resumed_after_another_is_charged_its_own_parts_alone(
    coordinator: CoordinatorFolder, planned: Plan
) -> None:
    """The later run was said to have spent nothing, and the resumed one the later one's part as well."""
    first, second = planned("first"), planned("second")
    created(first, 1.0)
    created(second, 2.0)
    played(first, epsilon={"shop": 2.0, "video": 1.0}, state="incomplete", rounds=1)
    played(second, epsilon={"shop": 3.0, "video": 2.5})
    played(first, epsilon={"shop": 3.25, "video": 2.5})
    assert {one.run: one.spent for one in list_runs(coordinator)} == {"first": 2.25, "second": 1.5}
    played(first, epsilon={"shop": 3.25, "video": 2.75}, state="running")
    assert {one.run: one.spent for one in list_runs(coordinator)} == {"first": 2.25, "second": 1.5}


def test_what_was_spent_before_the_first_answer_is_not_known(coordinator: CoordinatorFolder, planned: Plan) -> None:
    """Whoever has joined and not answered has 0 in the journal; what earlier runs spent is spent all the same."""
    for number, (name, epsilon) in enumerate((("first", 2.0), ("ended", 0.0), ("next", 3.0))):
        created(planned(name), number + 1.0)
        played(replace_run(coordinator, name), epsilon={"shop": epsilon}, state="failed" if name == "ended" else "finished")
    assert {one.run: one.spent for one in list_runs(coordinator)} == {"first": 2.0, "ended": None, "next": 1.0}


def test_the_status_keeps_what_was_spent_when_a_run_ends_before_any_answer(
    coordinator: CoordinatorFolder, planned: Plan, tmp_path: Path
) -> None:
    Platforms(coordinator.platforms).approve(application(tmp_path, "shop"))
    played(planned("first"), epsilon={"shop": 2.0})
    played(planned("ended"), epsilon={"shop": 0.0}, state="failed")
    (shop,) = status_of(coordinator).platforms
    assert (shop.spent, shop.budget, shop.left) == (2.0, 8.0, 6.0) and status_of(coordinator).run["run"] == "ended"


def replace_run(coordinator: CoordinatorFolder, run: str) -> Launch:
    from server.deployment.launch import recorded

    return recorded(coordinator, run)


def test_what_was_asked_for_and_by_whom(coordinator: CoordinatorFolder, planned: Plan) -> None:
    planned("spring", {"privacy": {"epsilon": 2.0}})
    acting_operator(coordinator, None, Right.RUN).record(Verb.RUN, "spring")
    (found,) = list_runs(coordinator, log=log_of(coordinator))
    assert (found.planned, found.operator) == (2.0, "owner")
    shown = called("runs", "--server", coordinator.folder)
    assert shown.returncode == 0 and "spring" in shown.stdout and "owner" in shown.stdout
    assert json.loads(called("runs", "--json", "--server", coordinator.folder).stdout)[0]["planned"] == 2.0


def test_damaged_files_of_one_run_hide_no_other(coordinator: CoordinatorFolder, planned: Plan) -> None:
    planned("whole")
    planned("torn")
    (coordinator.run("torn") / "run.toml").write_text("settings = [")
    (coordinator.run("torn") / "state.json").write_text("{")
    assert {one.run for one in list_runs(coordinator)} == {"whole", "torn"}


@pytest.mark.parametrize("name", ["no", "../keys", "", "UPPER"])
def test_a_name_of_no_run(coordinator: CoordinatorFolder, planned: Plan, name: str) -> None:
    planned("spring")
    with pytest.raises(InputError, match="there is no run") as caught:
        run_named(coordinator, name)
    assert "spring" in caught.value.do
    assert called("runs", "--follow", name or " ", "--server", coordinator.folder).returncode == 3


def test_a_run_is_followed_from_its_beginning_to_its_end(coordinator: CoordinatorFolder, planned: Plan) -> None:
    launch = planned("spring", {"strategy": "fedavg", "rounds": 2})
    turn = Turn(coordinator, "spring", waits=False)
    told: list[str] = []
    ended: list[Any] = []
    thread = threading.Thread(
        target=lambda: ended.append(follow_run(coordinator, "spring", lambda one: told.append(one["kind"])))
    )
    thread.start()
    played(launch, epsilon={"shop": 1.0}, state="incomplete", why="1 of 2 rounds count", code=7)
    time.sleep(0.5)
    assert ended == []
    turn.close()
    thread.join(20)
    assert told == ["joined", "round"] and (ended[0].state, ended[0].code) == ("incomplete", 7)
    done = called("runs", "--follow", "spring", "--server", coordinator.folder)
    assert done.returncode == 7 and "1 of 2 rounds count" in done.stdout


def test_only_what_goes_on_is_ended(coordinator: CoordinatorFolder, planned: Plan) -> None:
    played(planned("spring"), epsilon={"shop": 1.0})
    refused = called("abort", "spring", "--server", coordinator.folder)
    assert refused.returncode == 3 and "not at work: finished" in refused.stderr
    assert [one.verb for one in log_of(coordinator).actions] == [Verb.BEGIN]


def test_an_aborted_run_is_started_no_more_until_it_is_wanted_again(
    coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.deployment import launch as launching

    launch = replace(planned("spring"), restarts=5)
    attempts: list[int] = []

    def attempt(launch: Launch, show: Callable[[], None], tell: Any) -> str:
        attempts.append(1)
        note_abort(launch.folder, by="alice")
        return "the attempt stopped"

    monkeypatch.setattr(launching, "_attempt", attempt)
    for _ in range(2):
        with pytest.raises(RunAborted, match="aborted by alice"):
            federate_deployed(launch, lambda _: None)
    assert attempts == [1]
    clear_notes(launch.folder)
    with pytest.raises(RunAborted):
        federate_deployed(launch, lambda _: None)
    assert attempts == [1, 1]


def test_a_detached_run_waits_for_its_server_and_is_ended(coordinator: CoordinatorFolder, planned: Plan) -> None:
    """A real process: no server answers here, so it waits for one."""
    planned("spring")
    process = start_detached(coordinator, "spring", restarts=0)
    assert run_named(coordinator, "spring").state == "running"
    found = {one.pid: (one.part, one.place) for one in processes_in(coordinator.folder.parent)}
    assert found[process] == ("launcher", "coordinator")  # `fedfuse poc stop` finds it, too
    assert abort_run(coordinator, "spring", by="alice").state == "aborted"
    log = (coordinator.run("spring") / detached.LAUNCHER_LOG).read_text()
    assert "aborted by alice" in log


def test_a_detached_run_that_cannot_begin_says_why(
    coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned("spring")
    monkeypatch.setattr(detached, "MODULE", "server.scheduling.no_such_module")
    with pytest.raises(FedfuseError, match="does not begin") as caught:
        start_detached(coordinator, "spring", restarts=0)
    assert "no_such_module" in caught.value.quote


@pytest.mark.parametrize("words", [(), ("--dry-run",), ("--dry-run", "--json"), ("--queue", "--detach")])
def test_a_run_without_a_server_or_a_platform_is_refused_at_once(
    coordinator: CoordinatorFolder, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """It waited ten minutes for a server that nobody had started, and said nothing."""
    nobody = called("run", "--server", coordinator.folder, *words)
    assert nobody.returncode == 3 and "no platform is approved" in nobody.stderr
    (tmp_path / "shop.toml").write_text(application(tmp_path, "shop").text())
    assert called("approve", "shop", tmp_path / "shop.toml", "--yes", "--server", coordinator.folder).returncode == 0
    down = called("run", "--server", coordinator.folder, *words)
    assert down.returncode == 1 and "does not answer" in down.stderr and "fedfuse server start" in down.stderr
    assert not list((coordinator.folder / "runs").glob("*"))
    assert [one.verb for one in log_of(coordinator).actions if one.verb in (Verb.RUN, Verb.DRY_RUN)] == []
