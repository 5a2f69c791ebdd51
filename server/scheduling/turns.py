"""Whose turn it is: one run of a coordinator is at work at a time, and others wait in line.

Platforms answer one question after the other, and two runs side by side would spend from the same budget what each was promised.
Whoever watches a run holds a locked file in `queue/` for as long, and the run's own process holds `runs/NAME/lock`. Both locks
die with their process, so nothing has to be cleared up after one that was killed; and a run that goes on though nobody watches
it any more keeps its turn.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server.deployment.folder import CoordinatorFolder
from server.scheduling.run_notes import require_wanted
from shared.base.errors import ExitCode, FedfuseError
from shared.base.file_lock import try_lock

LOOK = 0.5
"""Seconds between two looks at the queue."""
_LOCK = "lock"
_SHORTLY = 2.0
"""Seconds in which somebody who looks whether a file is locked lets go of it."""


@dataclass(frozen=True, kw_only=True)
class LiveTurn:
    """A run that somebody watches.

    Args:
        number: Its place in the order of coming.
        begun: Whether it is at work; else it waits.
    """

    run: str
    number: int
    begun: bool


class TurnTaken(FedfuseError):
    """Another run is at work."""

    exit_code = ExitCode.REFUSED


class Turn:
    """A run's place in line, held until `close`. Use it as a context manager.

    Args:
        waits: Whether it waits where another run is at work.

    Raises:
        TurnTaken: another run is at work or waits, and this one does not wait; or this very run has a place already.
    """

    def __init__(self, coordinator: CoordinatorFolder, run: str, *, waits: bool) -> None:
        self._coordinator, self._run = coordinator, run
        self.begun = False
        with _alone(coordinator):
            others = live_turns(coordinator)
            if any(one.run == run for one in others):
                raise TurnTaken(
                    f"run {run} is at work or waits already", where=str(coordinator.run(run)), do=f"fedfuse runs --follow {run}"
                )
            first = next(iter([*at_work(coordinator, besides=run), *(one.run for one in others)]), "")
            if first and not waits:
                raise TurnTaken(
                    f"run {first} is at work",
                    where=str(coordinator.run(first)),
                    do=f"wait in line: --queue; or end it: fedfuse abort {first}",
                )
            self._number = max((one.number for one in others), default=0) + 1
            self._path = coordinator.queue / f"{run}.json"
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            end = time.monotonic() + _SHORTLY
            while not try_lock(self._handle):
                if time.monotonic() > end:
                    os.close(self._handle)
                    raise TurnTaken(f"run {run} is at work already", where=str(self._path), do=f"fedfuse runs --follow {run}")
                time.sleep(0.02)
            self._note(begun=not first)

    def await_turn(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Return when it is this run's turn.

        Args:
            tell: Called with whom it waits for, when that changes.

        Raises:
            RunAborted: an operator ended it meanwhile.
        """
        told: list[str] = []
        while not self.begun:
            require_wanted(self._coordinator.run(self._run))
            with _alone(self._coordinator):
                waiting = [one.run for one in live_turns(self._coordinator) if not one.begun and one.number < self._number]
                ahead = [*at_work(self._coordinator, besides=self._run), *waiting]
                if not ahead:
                    self._note(begun=True)
                    return
            if ahead != told:
                tell({"kind": "queued", "round": 0, "text": f"waits for {', '.join(ahead)}"})
                told = ahead
            time.sleep(LOOK)

    def close(self) -> None:
        """Give the turn to the next. Harmless when repeated."""
        if self._handle >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _note(self, *, begun: bool) -> None:
        text = json.dumps({"number": self._number, "begun": begun, "process": os.getpid()}).encode()
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text, 0)
        self.begun = begun


def live_turns(coordinator: CoordinatorFolder) -> list[LiveTurn]:
    """Runs that somebody watches: those at work, and those that wait, in the order of coming."""
    found = []
    for path in coordinator.queue.glob("*.json"):
        if not is_held(path):
            continue
        try:
            values = json.loads(path.read_bytes())
            found.append(LiveTurn(run=path.stem, number=int(values["number"]), begun=bool(values["begun"])))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # just begun, or just gone
    return sorted(found, key=lambda one: (not one.begun, one.number))


def at_work(coordinator: CoordinatorFolder, *, besides: str = "") -> list[str]:
    """Runs that are at work, whether somebody watches them or not."""
    watched = [one.run for one in live_turns(coordinator) if one.begun]
    alone = [path.parent.name for path in sorted((coordinator.folder / "runs").glob(f"*/{_LOCK}")) if is_held(path)]
    return [name for name in dict.fromkeys([*watched, *alone]) if name != besides]


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of that file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


@contextmanager
def _alone(coordinator: CoordinatorFolder) -> Iterator[None]:
    coordinator.queue.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(coordinator.queue / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
