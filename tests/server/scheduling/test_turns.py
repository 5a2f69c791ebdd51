"""One run is at work at a time: others are refused or wait, in the order in which they came, and whoever dies leaves the line."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import Launch
from server.scheduling import turns
from server.scheduling.run_list import list_runs
from server.scheduling.run_notes import RunAborted, note_abort
from server.scheduling.turns import Turn, TurnTaken, at_work, live_turns

Plan = Callable[..., Launch]
ROOT = Path(__file__).parents[3]


def nothing(event: dict[str, Any]) -> None:
    """Nobody listens."""


def states(coordinator: CoordinatorFolder) -> dict[str, str]:
    return {one.run: one.state for one in list_runs(coordinator)}


def test_the_first_begins_and_a_second_is_told_how_to_wait(coordinator: CoordinatorFolder, planned: Plan) -> None:
    planned("first")
    with Turn(coordinator, "first", waits=False) as turn:
        turn.await_turn(nothing)
        assert turn.begun and at_work(coordinator) == ["first"]
        with pytest.raises(TurnTaken, match="run first is at work") as caught:
            Turn(coordinator, "second", waits=False)
        assert "--queue" in caught.value.do and "fedfuse abort first" in caught.value.do and int(caught.value.exit_code) == 6
        with pytest.raises(TurnTaken, match="already"):
            Turn(coordinator, "first", waits=True)
        assert states(coordinator) == {"first": "running"}
    assert live_turns(coordinator) == [] and list(coordinator.queue.glob("*.json")) == []
    Turn(coordinator, "second", waits=False).close()


def test_they_take_their_turns_in_the_order_of_coming(
    coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOOK", 0.01)
    order: list[str] = []
    told: list[str] = []
    first = Turn(coordinator, "first", waits=False)
    waiting = []
    for name in ("b", "a", "c"):
        planned(name)
        place = Turn(coordinator, name, waits=True)

        def work(place: Turn = place, name: str = name) -> None:
            place.await_turn(lambda event: told.append(event["text"]))
            order.append(name)
            assert at_work(coordinator) == [name]
            place.close()

        waiting.append(threading.Thread(target=work))
    assert states(coordinator) == {"a": "queued", "b": "queued", "c": "queued"}
    for thread in waiting[::-1]:
        thread.start()
    time.sleep(0.1)
    assert order == []
    first.close()
    for thread in waiting:
        thread.join(20)
    assert order == ["b", "a", "c"] and "waits for first" in told and "waits for first, b, a" in told


def test_a_run_that_nobody_watches_keeps_its_turn(coordinator: CoordinatorFolder, planned: Plan) -> None:
    """Its own process goes on though whoever watched it was killed."""
    launch = planned("alone")
    handle = os.open(launch.folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(TurnTaken, match="run alone is at work"):
        Turn(coordinator, "next", waits=False)
    assert states(coordinator) == {"alone": "running"}
    with Turn(coordinator, "alone", waits=False) as turn:  # it may be watched again
        assert turn.begun
    os.close(handle)
    assert at_work(coordinator) == [] and states(coordinator) == {"alone": "stopped"}


def test_whoever_is_killed_leaves_the_line(coordinator: CoordinatorFolder, planned: Plan) -> None:
    planned("killed")
    code = (
        "import sys, time; from pathlib import Path; from server.deployment.folder import open_coordinator;"
        "from server.scheduling.turns import Turn;"
        "turn = Turn(open_coordinator(Path(sys.argv[1])), 'killed', waits=True); print('here', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, coordinator.folder], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    assert [one.run for one in live_turns(coordinator)] == ["killed"]
    process.kill()
    process.wait()
    assert live_turns(coordinator) == [] and (coordinator.queue / "killed.json").exists()
    with Turn(coordinator, "killed", waits=False) as turn:
        assert turn.begun


def test_one_that_waits_can_be_ended(coordinator: CoordinatorFolder, planned: Plan) -> None:
    launch = planned("second")
    with Turn(coordinator, "first", waits=False), Turn(coordinator, "second", waits=True) as second:
        note_abort(launch.folder, by="alice")
        with pytest.raises(RunAborted, match="aborted by alice"):
            second.await_turn(nothing)
    assert states(coordinator) == {"second": "aborted"}
