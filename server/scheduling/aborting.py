"""`fedfuse abort`: an operator ends a run that is at work or waits."""

from __future__ import annotations

import time

from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import recorded, stop
from server.scheduling.run_list import RunSummary, run_named
from server.scheduling.run_notes import note_abort
from server.scheduling.turns import live_turns
from shared.base.errors import FedfuseError, InputError

PATIENCE = 60.0
"""Seconds that a run gets to end; its process notices at its next word with Flower."""
_LOOK = 0.2


def require_going_on(coordinator: CoordinatorFolder, run: str) -> RunSummary:
    """The run, if it can be ended.

    Raises:
        InputError: there is none of that name, or it goes on no more.
    """
    found = run_named(coordinator, run)
    if not found.going_on:
        raise InputError(f"run {run} is not at work: {found.state}", where=str(coordinator.run(run)), do="see fedfuse runs")
    return found


def abort_run(coordinator: CoordinatorFolder, run: str, *, by: str, patience: float = PATIENCE) -> RunSummary:
    """End a run; its checkpoint and all that platforms have spent on it stay.

    Whoever watches it, at a terminal or detached, reads the note and stops Flower; where nobody does, it is stopped here.

    Raises:
        InputError: it goes on no more.
        FedfuseError: the server does not answer, or it does not end.
    """
    require_going_on(coordinator, run)
    note_abort(coordinator.run(run), by=by)
    end = time.monotonic() + patience
    while (found := run_named(coordinator, run)).going_on:
        if time.monotonic() > end:
            raise FedfuseError(
                f"run {run} does not end within {patience:g} s", where=str(coordinator.run(run)), do="see the server's log"
            )
        if not any(one.run == run for one in live_turns(coordinator)):
            stop(recorded(coordinator, run))
        time.sleep(_LOOK)
    return found
