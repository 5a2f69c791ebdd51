"""A run without a terminal: a process of its own waits for its turn, watches it, and goes on with it when something is killed.

`fedfuse run --detach` starts it (`python -m server.scheduling.detached FOLDER RUN RESTARTS`), when it is known who asks for the
run and what it is. Its words are in `launcher.log` of the run's folder; `fedfuse runs --follow RUN` shows the run's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.deployment.launch import federate_deployed, recorded
from server.scheduling.run_notes import note_failure
from server.scheduling.turns import Turn, live_turns
from shared.base.errors import FedfuseError

LAUNCHER_LOG = "launcher.log"
MODULE = "server.scheduling.detached"
_PATIENCE, _LOOK = 60.0, 0.1
_ROOT = Path(__file__).resolve().parents[2]


def start_detached(coordinator: CoordinatorFolder, run: str, *, restarts: int) -> int:
    """Start the process for a run that is written down; it has its place in line when this returns.

    Returns:
        Its process id.

    Raises:
        FedfuseError: it has ended at once, or does not begin.
    """
    path = coordinator.run(run) / LAUNCHER_LOG
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}
    with path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", MODULE, str(coordinator.folder), run, str(restarts)],
            cwd=coordinator.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + _PATIENCE
    while not any(one.run == run for one in live_turns(coordinator)):
        if process.poll() == 0:
            break  # over already
        if process.poll() is not None or time.monotonic() > end:
            process.kill()  # else the run might begin after this has said that it does not
            process.wait()
            raise FedfuseError(
                f"the process that watches run {run} does not begin",
                where=str(path),
                do="see what it says",
                quote=path.read_text(encoding="utf-8", errors="replace")[-1000:],
            )
        time.sleep(_LOOK)
    return process.pid


def watch(coordinator: CoordinatorFolder, run: str, *, restarts: int) -> int:
    """Wait for the run's turn, and watch it to its end; its exit code. Why it was given up is noted in its folder."""
    try:
        launch = replace(recorded(coordinator, run), restarts=restarts)
        with Turn(coordinator, run, waits=True) as turn:
            turn.await_turn(_say)
            state = federate_deployed(launch, _say)
    except FedfuseError as error:
        _say({"kind": "failed", "text": str(error)})
        note_failure(coordinator.run(run), error)
        return int(error.exit_code)
    _say({"kind": str(state.get("state", "")), "round": state.get("round", 0), "text": str(state.get("why", ""))})
    return int(state.get("code", 0))


def _say(event: dict[str, Any]) -> None:
    if event.get("kind") != "answered":
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        print(f"{stamp} round {event.get('round', 0)}: {event.get('text', '')}", flush=True)


if __name__ == "__main__":
    sys.exit(watch(open_coordinator(Path(sys.argv[1])), sys.argv[2], restarts=int(sys.argv[3])))
