"""The runs of a coordinator, from what each left in its folder: state, plan, rounds, budget, model."""

from __future__ import annotations

import math
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import RECORD
from server.monitoring.journal import read_events, read_state, stretches
from server.operators.operator_log import OperatorLog
from server.operators.rights import Verb
from server.registry.published_note import published_version
from server.scheduling.run_notes import aborted_by, failure_in
from server.scheduling.turns import LiveTurn, at_work, live_turns
from shared.base.errors import ExitCode, InputError
from shared.protocol.messages import NAME

GOING_ON = ("queued", "running")
_LOOK = 0.3
_CODES = {"finished": ExitCode.OK, "incomplete": ExitCode.INCOMPLETE, "failed": ExitCode.FAILED}


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run.

    Args:
        state: queued, running, finished, incomplete, failed, aborted, or stopped: nobody works on it, and it has not ended.
        round, rounds: Done, and asked for; 0 rounds where nothing is trained.
        platforms: Names of those that took part so far.
        planned: Epsilon by which it may raise what a platform has spent; None: `share` of what each has left.
        spent: The most that one platform has spent more than when the run before it ended; None before the first answer.
            Where another run went on meanwhile, its part is in it.
        began, changed: Seconds since 1970; `changed` is 0 before the first event.
        operator: Who asked for it; '' where no log says.
        version: Of the registry, that its model was published as; 0: none.
        why: What is said of its end, or whom it waits for.
        code: Exit code of `fedfuse run` for such an end.
    """

    run: str
    state: str
    strategy: str
    round: int
    rounds: int
    platforms: tuple[str, ...]
    planned: float | None
    share: float
    spent: float | None
    began: float
    changed: float
    operator: str = ""
    version: int = 0
    why: str = ""
    code: int = 0

    @property
    def going_on(self) -> bool:
        """Whether it is at work, or waits."""
        return self.state in GOING_ON

    def to_json(self) -> dict[str, Any]:
        """For machines; an infinite epsilon is the string 'inf'."""
        values = asdict(self)
        return {name: "inf" if value == math.inf else value for name, value in values.items()}


def list_runs(coordinator: CoordinatorFolder, *, log: OperatorLog | None = None) -> list[RunSummary]:
    """Every run, the newest first.

    Args:
        log: Of the operators, for who asked for each.
    """
    turns = {one.run: one for one in live_turns(coordinator)}
    working = frozenset(at_work(coordinator))
    asked = {} if log is None else {one.of: one.operator for one in log.actions if one.verb is Verb.RUN}
    found, reached = [], []
    for path in (coordinator.folder / "runs").glob(f"*/{RECORD}"):
        summary, came_to = _summary(path.parent, turns, working)
        found.append(replace(summary, operator=asked.get(summary.run, "")))
        reached += [(float(one["time"]), summary.began, summary.run, one["epsilon"]) for one in came_to]
    # One run is at work at a time, so what a ledger has grown by since anybody's last answer is of the run that says it: of
    # one that stopped, and was resumed after another, in two parts.
    before: dict[str, float] = {}
    spent: dict[str, dict[str, float]] = {}
    for _, _, run, epsilons in sorted(reached, key=lambda one: one[:3]):
        for name, epsilon in epsilons.items():
            mine = spent.setdefault(run, {})
            mine[name] = mine.get(name, 0.0) + _raised(before.get(name, 0.0), float(epsilon))
            before[name] = float(epsilon)
    runs = [replace(one, spent=max(spent.get(one.run, {}).values(), default=None)) for one in found]
    return sorted(runs, key=lambda one: (one.began, one.run), reverse=True)


def _raised(before: float, after: float) -> float:
    return max(after - before, 0.0) if math.isfinite(after) else after


def run_named(coordinator: CoordinatorFolder, run: str) -> RunSummary:
    """One run by itself: what it spent, which takes the others, is left out.

    Raises:
        InputError: there is none of that name.
    """
    if not NAME.fullmatch(run) or not (coordinator.run(run) / RECORD).is_file():
        names = ", ".join(one.run for one in list_runs(coordinator)[:10]) or "none"
        raise InputError(f"there is no run {run!r:.80}", where=str(coordinator.folder / "runs"), do=f"runs are: {names}")
    turns = {one.run: one for one in live_turns(coordinator)}
    return _summary(coordinator.run(run), turns, at_work(coordinator))[0]


def follow_run(coordinator: CoordinatorFolder, run: str, tell: Callable[[dict[str, Any]], None]) -> RunSummary:
    """Tell what a run's journal says from its beginning on, until the run goes on no more.

    Raises:
        InputError: there is none of that name.
    """
    folder, position = coordinator.run(run), 0
    while True:
        found = run_named(coordinator, run)  # before its events: what it wrote last is still reported
        for at, event in read_events(folder, after=position):
            position = at
            tell(event)
        if not found.going_on:
            return found
        time.sleep(_LOOK)


def _summary(folder: Path, turns: Mapping[str, LiveTurn], working: Iterable[str]) -> tuple[RunSummary, list[dict[str, Any]]]:
    try:
        plan = tomllib.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        plan = {}
    settings = plan.get("settings", {})
    privacy = settings.get("privacy", {})
    journal = read_state(folder) or {}
    lines = {str(name): line for name, line in journal.get("platforms", {}).items() if isinstance(line, dict)}
    state, why, code = _state(folder, journal, turns.get(folder.name), working=folder.name in working)
    planned = privacy.get("epsilon")
    return (
        RunSummary(
            run=folder.name,
            state=state,
            strategy=str(settings.get("strategy", "")),
            round=int(journal.get("round", 0)),
            rounds=int(settings.get("rounds", 0)),
            platforms=tuple(sorted(name for name, line in lines.items() if line.get("joined") or line.get("rounds"))),
            planned=None if planned is None else float(planned),
            share=float(privacy.get("share", 0.0)),
            spent=None,
            began=float(plan.get("created") or (folder / RECORD).stat().st_mtime),
            changed=float(journal.get("time", 0.0)),
            version=published_version(folder),
            why=why,
            code=code,
        ),
        stretches(journal),
    )


def _state(folder: Path, journal: Mapping[str, Any], turn: LiveTurn | None, *, working: bool) -> tuple[str, str, int]:
    """(state, why, exit code)."""
    if turn is not None and not turn.begun:
        return "queued", "", 0
    if working:
        return "running", "", 0
    said, why = str(journal.get("state", "")), str(journal.get("why", ""))
    if said in ("finished", "incomplete"):
        return said, why, int(_CODES[said])
    by = aborted_by(folder)
    if by:
        return "aborted", f"by {by}", int(ExitCode.INTERRUPTED)
    given_up = failure_in(folder)
    if given_up is not None:
        return "failed", *given_up
    if said == "failed":
        return said, why, int(journal.get("code") or ExitCode.FAILED)
    return "stopped", f"go on with it: fedfuse run --resume {folder.name}", int(ExitCode.INTERRUPTED)
