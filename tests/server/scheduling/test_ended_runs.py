"""Runs that are watched without a terminal, ended by an operator, or given up: what is written down, said, and returned."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import Launch
from server.scheduling import aborting, detached
from server.scheduling.aborting import abort_run, require_going_on
from server.scheduling.run_notes import RunAborted, aborted_by, clear_notes, failure_in, note_abort, note_failure, require_wanted
from server.scheduling.turns import Turn, at_work
from shared.base.errors import ExitCode, FedfuseError, InputError
from tests.server.scheduling.test_run_list import played

Plan = Callable[..., Launch]


class TestNotes:
    def test_who_ended_it_stops_it_until_it_is_wanted_again(self, tmp_path: Path) -> None:
        require_wanted(tmp_path)
        assert (aborted_by(tmp_path), failure_in(tmp_path)) == ("", None)
        note_abort(tmp_path, by="alice")
        assert aborted_by(tmp_path) == "alice"
        with pytest.raises(RunAborted, match=f"run {tmp_path.name} was aborted by alice") as caught:
            require_wanted(tmp_path)
        assert caught.value.exit_code is ExitCode.INTERRUPTED and f"--resume {tmp_path.name}" in caught.value.do
        note_failure(tmp_path, InputError("no such thing", where="x"))
        assert failure_in(tmp_path) == ("no such thing\n  where: x", 3)
        for name in ("aborted.json", "given-up.json"):
            assert time.time() - 60 < json.loads((tmp_path / name).read_text())["time"] <= time.time()
        clear_notes(tmp_path)
        assert (aborted_by(tmp_path), failure_in(tmp_path), list(tmp_path.iterdir())) == ("", None, [])
        clear_notes(tmp_path)
        require_wanted(tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "[]", "7", "{}", '{"why": "x"}', '{"why": "x", "code": "y"}'])
    def test_damaged_notes_are_none(self, tmp_path: Path, content: str) -> None:
        for name in ("aborted.json", "given-up.json"):
            (tmp_path / name).write_text(content)
        assert (aborted_by(tmp_path), failure_in(tmp_path)) == ("", None)


class TestEnding:
    def test_only_what_goes_on(self, coordinator: CoordinatorFolder, planned: Plan) -> None:
        planned("r")
        for end in (lambda: require_going_on(coordinator, "r"), lambda: abort_run(coordinator, "r", by="alice")):
            with pytest.raises(InputError, match="run r is not at work: stopped"):
                end()
        assert aborted_by(coordinator.run("r")) == ""
        with Turn(coordinator, "r", waits=False):
            assert require_going_on(coordinator, "r").state == "running"

    def test_whoever_watches_it_ends_it(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        planned("r")
        stopped: list[str] = []
        monkeypatch.setattr(aborting, "stop", lambda launch: stopped.append(launch.run))
        turn = Turn(coordinator, "r", waits=False)
        threading.Timer(0.5, turn.close).start()
        began = time.monotonic()
        assert abort_run(coordinator, "r", by="alice").state == "aborted"
        assert 0.3 < time.monotonic() - began < 20 and stopped == []

    def test_what_nobody_watches_is_stopped_at_flower(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        working = ["r"]
        planned("r")
        stopped: list[str] = []

        def stop(launch: Launch) -> None:
            assert aborted_by(launch.folder) == "alice"
            stopped.append(launch.run)
            if len(stopped) == 2:
                working.clear()

        monkeypatch.setattr(aborting, "stop", stop)
        monkeypatch.setattr(aborting, "_LOOK", 0.01)
        monkeypatch.setattr("server.scheduling.run_list.at_work", lambda coordinator: working)
        assert abort_run(coordinator, "r", by="alice").state == "aborted" and stopped == ["r", "r"]

    def test_what_does_not_end_is_said(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        planned("r")
        monkeypatch.setattr(aborting, "_LOOK", 0.01)
        with Turn(coordinator, "r", waits=False):
            began = time.monotonic()
            with pytest.raises(FedfuseError, match=r"run r does not end within 0\.2 s"):
                abort_run(coordinator, "r", by="alice", patience=0.2)
            assert time.monotonic() - began >= 0.2
            assert aborted_by(coordinator.run("r")) == "alice"  # whoever watches it has yet to see it


class TestWithoutATerminal:
    """What `python -m server.scheduling.detached` does, in this process."""

    def watched(
        self, coordinator: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any] | FedfuseError
    ) -> tuple[int, Launch | None]:
        seen: list[Launch] = []

        def federate(launch: Launch, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            seen.append(launch)
            assert at_work(coordinator) == [launch.run]
            for event in ({"kind": "round", "round": 2, "text": "two"}, {"kind": "answered", "text": "no"}, {"kind": "away"}):
                tell(event)
            if isinstance(outcome, FedfuseError):
                raise outcome
            return outcome

        monkeypatch.setattr(detached, "federate_deployed", federate)
        code = detached.watch(coordinator, "r", restarts=3)
        assert at_work(coordinator) == []
        return code, seen[0] if seen else None

    def said(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        lines = capsys.readouterr().out.splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
        return [line.split(" ", 1)[1] for line in lines]

    @pytest.mark.parametrize(("state", "code", "last"), [
        ({"state": "finished", "round": 3, "why": "version 1", "code": 0}, 0, "round 3: version 1"),
        ({"state": "incomplete", "round": 2, "why": "1 of 3", "code": 7}, 7, "round 2: 1 of 3"),
        ({}, 0, "round 0: "),
    ])  # fmt: skip
    def test_its_end_is_its_exit_code(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str], state: dict[str, Any], code: int, last: str,
    ) -> None:  # fmt: skip
        launch = planned("r")
        got, watched = self.watched(coordinator, monkeypatch, state)
        assert got == code and watched is not None and (watched.run, watched.restarts) == ("r", 3)
        assert watched.settings == launch.settings
        assert self.said(capsys) == ["round 2: two", "round 0: ", last] and failure_in(launch.folder) is None

    def test_why_it_was_given_up_is_noted(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        launch = planned("r")
        code, _ = self.watched(coordinator, monkeypatch, InputError("the settings are wrong"))
        assert (code, failure_in(launch.folder)) == (3, ("the settings are wrong", 3))
        assert self.said(capsys)[-1] == "round 0: the settings are wrong"

    def test_it_waits_for_its_turn(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        planned("r")
        first = Turn(coordinator, "first", waits=False)
        threading.Timer(0.3, first.close).start()
        assert self.watched(coordinator, monkeypatch, {"state": "finished"})[0] == 0
        assert self.said(capsys)[0] == "round 0: waits for first"

    def test_one_that_is_over_at_once_has_begun(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its process may end before anybody looks; one that fails does not."""
        launch = planned("r")
        monkeypatch.setattr(sys, "executable", "/bin/true")
        assert detached.start_detached(coordinator, "r", restarts=0) > 0
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(FedfuseError, match="the process that watches run r does not begin") as caught:
            detached.start_detached(coordinator, "r", restarts=0)
        assert caught.value.where == str(launch.folder / "launcher.log")

    def test_its_words_are_in_a_file_and_the_last_of_them_in_the_error(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launch = planned("r")
        (launch.folder / "launcher.log").write_text("before\n" + "x" * 2000 + "end")
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(FedfuseError) as caught:
            detached.start_detached(coordinator, "r", restarts=0)
        assert caught.value.quote == "x" * 997 + "end"
        assert (launch.folder / "launcher.log").read_text().startswith("before")  # an earlier attempt's stay

    def test_one_that_takes_no_place_in_line_is_not_waited_for_without_end(
        self, coordinator: CoordinatorFolder, planned: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        planned("r")
        script = tmp_path / "waits"
        script.write_text('#!/bin/sh\necho "$@" "$PWD"\necho $$ > process\nexec sleep 600\n')
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))
        monkeypatch.setattr(detached, "_PATIENCE", 0.5)
        began = time.monotonic()
        with pytest.raises(FedfuseError, match="does not begin") as caught:
            detached.start_detached(coordinator, "r", restarts=4)
        assert time.monotonic() - began >= 0.5
        folder = coordinator.folder
        # It would take its place after all, and run what was said not to begin.
        with pytest.raises(ProcessLookupError):
            os.kill(int((folder / "process").read_text()), 0)
        assert caught.value.quote == f"-m server.scheduling.detached {folder} r 4 {folder}\n"


def test_played_runs_are_no_longer_ended(coordinator: CoordinatorFolder, planned: Plan) -> None:
    played(planned("r"), epsilon={"shop": 1.0})
    with pytest.raises(InputError, match="not at work: finished"):
        require_going_on(coordinator, "r")
