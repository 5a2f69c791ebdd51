"""What a run leaves for its operators while it goes on: a line for every event, and its state now, both in its folder.

`fedfuse run` and `fedfuse status` read them; so they outlive whoever writes or reads them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.monitoring.run_events import Event, Kind, Tally
from shared.base.atomic_files import write_whole
from shared.base.regular_files import open_regular

EVENTS, STATE = "events.jsonl", "state.json"
_STRETCHES = 1000
_MOST_BYTES = 1 << 20
"""Of one event, newline included."""
_TROUBLE = (Kind.REFUSED, Kind.FAILED, Kind.SILENT, Kind.DROPPED, Kind.LEFT)


@dataclass
class _Line:
    """What the state says of one platform."""

    joined: bool = False
    users: int = 0
    rounds: int = 0
    epsilon: float = 0.0
    budget: float = 0.0
    delta: float = 0.0
    trouble: str = ""
    when: float = 0.0


@dataclass
class Journal:
    """A watcher that keeps both files. What it cannot write, it leaves out: a full disk must not end a run by its log."""

    folder: Path
    run: str
    rounds: int
    _lines: dict[str, _Line] = field(default_factory=dict)
    _round: int = 0
    _earlier: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Keep what the run's earlier processes came to: other runs may have spent between one and the next."""
        self._earlier = stretches(read_state(self.folder) or {})[-_STRETCHES:]

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        now = time.time()
        self._take(event, now)
        entry = {"time": round(now, 3), "kind": str(event.kind), "round": event.round, "text": event.text}
        if event.platform:
            entry["platform"] = event.platform
        try:
            with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError:
            return
        if event.kind is not Kind.ANSWERED:
            self.say("running")

    def say(self, state: str, *, why: str = "", code: int = 0) -> None:
        """Write the state: running, finished, incomplete or failed, and why."""
        platforms = {
            name: {key: ("inf" if value == math.inf else value) for key, value in vars(line).items()}
            for name, line in self._lines.items()
        }
        values: dict[str, Any] = {
            "run": self.run,
            "state": state,
            "why": why,
            "code": code,
            "round": self._round,
            "rounds": self.rounds,
            "process": os.getpid(),
            "time": time.time(),
            "left_out": self._left_out,
            "earlier": self._earlier,
            "platforms": platforms,
        }
        try:
            write_whole(self.folder / STATE, (json.dumps(values, indent=1) + "\n").encode())
        except Exception:  # noqa: BLE001 - what is shown to people must not stop what is done
            return

    @property
    def _left_out(self) -> dict[str, str]:
        """Platforms that are not in the run and never were, and why."""
        return {name: line.trouble for name, line in self._lines.items() if line.trouble and not line.joined and not line.rounds}

    def _take(self, event: Event, now: float) -> None:
        if event.kind in (Kind.ROUND, Kind.LOST, Kind.RESUMED, Kind.EVALUATED):
            self._round = event.round
        for name, tally in event.tallies.items():
            self._count(self._lines.setdefault(name, _Line()), tally)
        # Names come from platforms: one that refuses before it joins is noted, but not any number of them.
        full = len(self._lines) > 1000 and event.platform not in self._lines and event.kind is not Kind.JOINED
        if not event.platform or full:
            return
        line = self._lines.setdefault(event.platform, _Line())
        if event.kind is Kind.JOINED:
            line.joined = True
        elif event.kind is Kind.LEFT:
            line.joined = False
        if event.kind in _TROUBLE:
            line.trouble, line.when = event.text[:300], now

    @staticmethod
    def _count(line: _Line, tally: Tally) -> None:
        line.users, line.rounds, line.epsilon = tally.users, tally.rounds, tally.epsilon
        line.budget, line.delta = tally.joined.budget, tally.joined.delta


def stretches(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each process of a run came to, in order: when it last wrote (`time`), and the epsilon of each platform (`epsilon`)."""
    earlier = [one for one in state.get("earlier", []) if isinstance(one, dict) and "time" in one and "epsilon" in one]
    lines = {str(name): line for name, line in state.get("platforms", {}).items() if isinstance(line, dict)}
    # 0 is what is there before the first answer.
    spent = {name: line["epsilon"] for name, line in lines.items() if line.get("users") and float(line["epsilon"])}
    return [*earlier, {"time": float(state["time"]), "epsilon": spent}] if spent else earlier


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state of the run in that folder, or None if it has not begun."""
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def read_events(folder: Path, *, after: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole lines of the run's events that begin at byte `after`, each with the byte that follows it."""
    try:
        with open_regular(folder / EVENTS) as file:
            file.seek(after)
            while raw := file.readline(_MOST_BYTES):
                if not raw.endswith(b"\n"):  # being written, or no event of ours
                    return
                after += len(raw)
                try:
                    yield after, json.loads(raw)
                except (ValueError, RecursionError):
                    continue  # torn by a crash; the next line begins anew
    except FileNotFoundError:
        return
