"""What the coordinator's page shows: one JSON, put together from what the server, the runs and the operators wrote down.

Nothing is asked of a platform, and nothing is in it that `fedfuse status`, `runs`, `log` and `models` do not show.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from server.deployment.folder import CoordinatorFolder
from server.deployment.status import Status, status_of
from server.monitoring.journal import read_events
from server.operators.acting import log_of
from server.operators.operator_log import HEAD, LOG, OperatorLog
from server.operators.restored_state import list_differences, require_latest
from server.operators.rights import Right, rights_text
from server.scheduling.run_list import RunSummary, list_runs
from shared.base.errors import FedfuseError, InputError
from shared.base.version import VERSION
from shared.protocol.messages import NAME

REFRESH = 2.0
"""Seconds for which an answer holds; whoever looks asks no more often."""
_MODELS_FOR = 60.0
"""Seconds for which a registry, which may be far away, is not asked again."""
MOST_RUNS, MOST_ACTIONS, MOST_MODELS, MOST_EVENTS, MOST_ROUNDS = 50, 100, 20, 400, 200
_MOST_FOLLOWED = 8
"""Runs whose journals are read on instead of anew."""
_LONGEST = 300
Made = TypeVar("Made")


class Overview:
    """Looks at a coordinator's folder, at most every `REFRESH` seconds.

    Args:
        clock: Seconds that only grow; a test gives its own.
    """

    def __init__(self, coordinator: CoordinatorFolder, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._coordinator, self._clock, self._lock = coordinator, clock, Lock()
        self._made: dict[str, Any] = {}
        self._until = self._models_until = -math.inf
        self._models: dict[str, Any] = {}
        self._log: OperatorLog | None = None
        self._told: dict[str, _Told] = {}
        self._log_seen: tuple[tuple[int, int, int], ...] = ()

    def current(self) -> dict[str, Any]:
        """Everything the page shows, plain JSON values. What cannot be read is said in its place, and hides nothing else."""
        with self._lock:
            if self._clock() >= self._until:
                self._made = self._make()
                self._until = self._clock() + REFRESH
            return self._made

    def events(self, run: str) -> dict[str, Any]:
        """The last events of a run, the newest first, and the seconds that each of its rounds took.

        Raises:
            InputError: that is no run's name.
        """
        folder = self._coordinator.run(run) if NAME.fullmatch(run) else Path("?")
        if not folder.is_dir():
            raise InputError("there is no such run", where="runs", do="name one of the list")
        with self._lock:
            told = self._told.pop(run, None) or _Told(folder)
            self._told[run] = told  # the last that was asked for is the last to be forgotten
            while len(self._told) > _MOST_FOLLOWED:
                del self._told[next(iter(self._told))]
            told.look()
            return {"run": run, "events": list(told.events)[::-1], "rounds": list(told.rounds)}

    def _make(self) -> dict[str, Any]:
        problems: list[str] = []
        log = _tried(self._read_log, problems)
        status = _tried(lambda: status_of(self._coordinator), problems)
        runs = _tried(lambda: list_runs(self._coordinator, log=log), problems) or []
        if log is not None:
            _tried(lambda: require_latest(self._coordinator, log), problems)
            problems += _tried(lambda: [one.found for one in list_differences(self._coordinator, log)], problems) or []
        file = self._coordinator.file
        return {
            "federation": file.name,
            "address": self._coordinator.address,
            "version": VERSION,
            "made": round(time.time(), 1),
            "server": None if status is None else status.server,
            "certificate_days": None if status is None else round(status.certificate),
            "strangers": {} if status is None else dict(itertools.islice(status.strangers.items(), 10)),
            "platforms": [] if status is None else self._platforms(status, runs),
            "runs": [_run(one) for one in runs[:MOST_RUNS]],
            "more_runs": max(len(runs) - MOST_RUNS, 0),
            "operators": [] if log is None else _operators(log),
            "log": None if log is None else _actions(log),
            "models": self._read_models(),
            "problems": [text[:_LONGEST] for text in problems],
        }

    def _read_log(self) -> OperatorLog:
        """The log, verified anew only when its files have changed: every line's signature is."""
        seen = tuple(_stamp(self._coordinator.operators / name) for name in (LOG, HEAD))
        if self._log is None or seen != self._log_seen:
            self._log, self._log_seen = None, ()
            self._log, self._log_seen = log_of(self._coordinator), seen
        return self._log

    def _platforms(self, status: Status, runs: list[RunSummary]) -> list[dict[str, Any]]:
        newest = status.run
        left_out = {str(name): str(why) for name, why in newest.get("left_out", {}).items()}
        joined = {str(name) for name, line in newest.get("platforms", {}).items() if line.get("joined") or line.get("rounds")}
        return [
            {
                "name": one.name,
                "standing": one.standing,
                "connection": one.connection,
                "ago": _ago_word(one.seen),
                "version": one.version[:40],
                "fingerprint": one.fingerprint,
                "trust": "left out" if one.name in left_out else "in the last run" if one.name in joined else "",
                "trust_why": left_out.get(one.name, "")[:_LONGEST],
                "rounds": one.rounds,
                "spent": _number(one.spent),
                "budget": _number(one.budget),
                "left": _number(one.left),
                "delta": _number(one.delta),
                "trouble": (one.trouble or (f"refused: {one.refused}" if one.refused else ""))[:_LONGEST],
            }
            for one in status.platforms
        ]

    def _read_models(self) -> dict[str, Any]:
        registry = self._coordinator.file.registry
        if not registry:
            return {"registry": "", "versions": [], "problem": ""}
        if self._clock() >= self._models_until:
            problems: list[str] = []
            versions = _tried(lambda: _versions(self._coordinator), problems) or []
            self._models = {"registry": registry[:_LONGEST], "versions": versions, "problem": "; ".join(problems)[:_LONGEST]}
            self._models_until = self._clock() + _MODELS_FOR
        return self._models


def _run(one: RunSummary) -> dict[str, Any]:
    values = one.to_json()
    return {**values, "why": one.why[:_LONGEST], "platforms": list(one.platforms)[:100], "going_on": one.going_on}


def _operators(log: OperatorLog) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "may": rights_text(one.rights) if one.rights else "",
            "all": one.rights == frozenset(Right),
            "since": one.since,
            "removed": one.removed,
            "fingerprint": one.fingerprint,
        }
        for one in log.operators.values()
    ]


def _actions(log: OperatorLog) -> dict[str, Any]:
    shown = log.actions[: -MOST_ACTIONS - 1 : -1]
    return {
        "head": log.head,
        "count": len(log.actions),
        "actions": [
            {
                "seq": one.seq,
                "time": one.time,
                "operator": one.operator,
                "verb": str(one.verb),
                "of": one.of,
                "details": {name: text for name, text in one.details.items() if name != "key"},
            }
            for one in shown
        ],
    }


def _versions(coordinator: CoordinatorFolder) -> list[dict[str, Any]]:
    from server.registry.registry import Registry
    from server.registry.store import open_store
    from shared.registry.signing import load_trusted

    trusted = [load_trusted(coordinator.model_key.with_suffix(".pub"))]
    found = Registry(open_store(coordinator.file.registry), trusted).versions()
    return [
        {
            "version": one.version,
            "name": one.origin.name,
            "run": one.origin.run,
            "created": one.origin.created,
            "strategy": one.origin.strategy,
            "rounds": one.origin.rounds,
            "platforms": list(one.origin.platforms)[:100],
            "bytes": one.size,
            "sha256": one.sha256,
        }
        for one in itertools.islice(found, MOST_MODELS)
    ]


class _Told:
    """What was read of a run's journal so far; read on from where it was read last."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._position = folder, 0
        self._mark: float | None = None
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self.rounds: deque[dict[str, Any]] = deque(maxlen=MOST_ROUNDS)
        """The seconds of each round since the one before ended; of the first, since the first event."""

    def look(self) -> None:
        for position, event in read_events(self._folder, after=self._position):
            self._position = position
            now, kind, number = _number(event.get("time")), str(event.get("kind", ""))[:40], event.get("round", 0)
            if not isinstance(now, float) or not isinstance(number, int):
                continue
            if self._mark is None or kind == "resumed":
                self._mark = now
            if kind in ("round", "lost"):
                self.rounds.append({"round": number, "seconds": round(now - self._mark, 1), "lost": kind == "lost"})
                self._mark = now
            if kind != "answered":
                text = str(event.get("text", ""))[:_LONGEST]
                self.events.append({"time": now, "kind": kind, "round": number, "text": text})


def _tried(make: Callable[[], Made], problems: list[str]) -> Made | None:
    try:
        return make()
    except FedfuseError as error:
        problems.append(error.brief)
        return None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _number(value: Any) -> float | str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return "inf" if math.isinf(value) else float(value)


def _ago_word(seconds: float | None) -> str:
    """Coarse, so that the page changes when something does."""
    if seconds is None:
        return ""
    if seconds < 60:
        return "seen just now"
    return f"seen {seconds / 60:.0f} min ago" if seconds < 7200 else f"seen {seconds / 3600:.0f} h ago"
