"""`fedfuse run`: start a federation on the coordinator's server, watch it, and go on with it when something was killed.

Flower resumes nothing. So a run has a name and a folder of its own; each attempt is one run of Flower's, and opens the last
checkpoint. Platforms remember what they answered under the run's name, so an attempt costs nothing twice.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from server.deployment.bundle import build_bundle
from server.deployment.flower_control import Control, FlowerRun, Unreachable
from server.deployment.folder import CoordinatorFolder
from server.monitoring.journal import read_events, read_state
from server.operators.acting import log_of
from server.operators.restored_state import require_current
from server.scheduling.run_notes import aborted_by, require_wanted
from shared.base.atomic_files import write_whole
from shared.base.errors import ExitCode, FedfuseError, InputError, StorageError
from shared.base.settings import Settings, build, flatten, settings_digest
from shared.protocol.keys import load_ed25519
from shared.protocol.messages import NAME
from shared.protocol.run_authorization import Warrant, federation_of

if TYPE_CHECKING:
    from server.run.quotes import DryRun

log = logging.getLogger("fedfuse.run")

RECORD, ATTEMPT = "run.toml", "attempt.json"
LIFETIME = 30 * 86400
"""Seconds that a warrant holds; every attempt gets a new one."""
_LOOK, _ASK = 0.3, 1.5
"""Seconds between two looks at the run's own files, and between two questions to the server, which has better to do."""
_FINAL = (ExitCode.BAD_INPUT, ExitCode.PRIVACY, ExitCode.REFUSED)
"""Failures that a second attempt would meet again."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to run.

    Args:
        run: Its name.
        nodes: Platforms to wait for; 0: whoever is there.
        wait: Seconds to wait for them, at the start and when all have gone.
        round_patience: Seconds in which a round of the secure sum that is given up is tried again, when its platforms are back.
        only: Names of the platforms that are asked; empty: all that are approved.
        publish: Whether the model is published where `server.toml` names a registry: whether whoever runs may.
        start: Name of the run whose adapter is trained on; '': a fresh one is.
        dry: Whether platforms are only asked what it would cost them.
        restarts: Attempts after the first, when Flower or the ServerApp was killed or failed.
        patience: Seconds that a server which went away is waited for.
    """

    coordinator: CoordinatorFolder
    run: str
    settings: Settings
    nodes: int = 0
    wait: float = 300.0
    round_patience: float = 600.0
    only: tuple[str, ...] = ()
    publish: bool = True
    start: str = ""
    dry: bool = False
    restarts: int = 5
    patience: float = 600.0

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.coordinator.dry_run(self.run) if self.dry else self.coordinator.run(self.run)


Tell = Callable[[dict[str, Any]], None]


def record(launch: Launch) -> None:
    """Write down what the run is, before it begins.

    Raises:
        InputError: there is a run of this name, or it can be no run's.
    """
    if not NAME.fullmatch(launch.run):
        raise InputError(f"{launch.run!r} is no name of a run", where="--name", do="names are like 'spring-2'")
    folder = launch.folder
    if folder.exists():
        raise InputError(
            f"run {launch.run!r} is there already", where=str(folder), do=f"go on with it: fedfuse run --resume {launch.run}"
        )
    privacy = {key: value for key, value in launch.settings.privacy.model_dump().items() if value is not None}
    settings = {**launch.settings.model_dump(mode="python"), "privacy": privacy}
    values = {
        "run": launch.run,
        "created": time.time(),
        "nodes": launch.nodes,
        "wait": launch.wait,
        "round_patience": launch.round_patience,
        "only": list(launch.only),
        "publish": launch.publish,
        "start": launch.start,
        "settings": settings,
    }
    write_whole(folder / RECORD, tomli_w.dumps(values).encode())


def recorded(coordinator: CoordinatorFolder, run: str) -> Launch:
    """The run of that name, as it was written down.

    Raises:
        InputError: there is none.
    """
    path = coordinator.run(run) / RECORD if NAME.fullmatch(run) else Path("?")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = build(values["settings"], where=str(path))
        return Launch(
            coordinator=coordinator,
            run=run,
            settings=settings,
            nodes=int(values["nodes"]),
            wait=float(values["wait"]),
            round_patience=float(values.get("round_patience", Launch.round_patience)),
            only=tuple(str(name) for name in values.get("only", ())),
            publish=bool(values.get("publish", True)),
            start=str(values.get("start", "")),
        )
    except (OSError, ValueError, KeyError):
        runs = coordinator.folder / "runs"
        names = ", ".join(sorted(path.parent.name for path in runs.glob(f"*/{RECORD}"))) or "none"
        raise InputError(f"there is no run {run!r}", where=str(runs), do=f"runs are: {names}") from None


def require_open(launch: Launch) -> None:
    """Check that a run has not ended already: what it came to would be published once more, as another version.

    Raises:
        InputError: all of its rounds count.
    """
    state = read_state(launch.folder) or {}
    if state.get("state") == "finished":
        raise InputError(
            f"run {launch.run!r} has ended: {state.get('why', '')}",
            where=str(launch.folder),
            do=f"train on from its model in a new run: fedfuse run --from {launch.run}",
        )


def federate_deployed(launch: Launch, tell: Tell) -> dict[str, Any]:
    """Run it to its end; returns its last state.

    Args:
        tell: Called with the run's events, as they are in its journal.

    Raises:
        RunAborted: an operator ended it.
        FedfuseError: it failed for good; what was reached is in its folder.
    """
    folder = launch.folder
    position = max((at for at, _ in read_events(folder)), default=0)
    left = launch.restarts

    def show() -> None:
        nonlocal position
        for at, event in read_events(folder, after=position):
            position = at
            tell(event)

    while True:
        require_wanted(folder)
        try:
            failure = _attempt(launch, show, tell)
        except StorageError as error:  # this side's disk is full; it may not be for long
            failure = str(error)
        show()
        state = read_state(folder) or {}
        if failure is None:
            return state
        require_wanted(folder)
        if state.get("state") == "failed" and state.get("code") in _FINAL:
            raise _failed(launch, state, failure)
        # What a restore put back does not mend itself, and a platform may have shown it since the run was begun.
        require_current(launch.coordinator, log_of(launch.coordinator))
        if left == 0:
            raise _failed(launch, state, failure)
        left -= 1
        tell({"kind": "restart", "round": state.get("round", 0), "text": f"{failure}; going on from the last checkpoint"})
        # A platform that was killed with us needs a moment; a disk that is full, more.
        time.sleep(min(2.0 ** (launch.restarts - left), 30.0))


def quotes_of(launch: Launch, tell: Tell) -> DryRun:
    """Ask the platforms what the run would cost them; nothing of it is kept on either side.

    Args:
        launch: A dry one.
        tell: As `federate_deployed`.

    Raises:
        FedfuseError: as `federate_deployed`.
    """
    from server.run.quotes import read_dry_run  # loads torch, which only a dry run needs here

    record(launch)
    try:
        federate_deployed(launch, tell)
        return read_dry_run(launch.folder)
    finally:
        with suppress(FedfuseError):
            stop(launch)
        shutil.rmtree(launch.folder, ignore_errors=True)


def _attempt(launch: Launch, show: Callable[[], None], tell: Tell) -> str | None:
    """One run of Flower's, watched to its end; what went wrong, or None."""
    flower: int | None = None
    end: float | None = None
    asked = -math.inf
    while True:
        show()
        if aborted_by(launch.folder):
            with suppress(FedfuseError):
                stop(launch)
            return "an operator ended it"
        if flower is not None and time.monotonic() < asked + _ASK and not _ended(launch):
            time.sleep(_LOOK)
            continue
        asked = time.monotonic()
        try:
            if flower is None:
                flower = _running(launch) or _start(launch)
            with Control(launch.coordinator) as control:
                state = control.run(flower)
            end = None
        except Unreachable as error:
            if end is None:
                end = time.monotonic() + launch.patience
                tell(
                    {
                        "kind": "away",
                        "text": f"the coordinator's server does not answer; it is waited for, {launch.patience:g} s at most",
                    }
                )
            if time.monotonic() > end:
                raise FedfuseError(
                    f"the coordinator's server did not come back within {launch.patience:g} s",
                    where=launch.coordinator.control,
                    do=f"start it, then: fedfuse run --resume {launch.run}",
                ) from error
            time.sleep(_LOOK)
            continue
        if state.finished:
            return None if state.result == "completed" else f"the attempt {_said(state)}"
        if _killed(launch):
            # Flower would notice in a minute.
            with suppress(FedfuseError), Control(launch.coordinator) as control:
                control.stop(flower)
            (launch.folder / ATTEMPT).unlink(missing_ok=True)
            return "the attempt's process was killed"
        time.sleep(_LOOK)


def _start(launch: Launch) -> int:
    coordinator = launch.coordinator
    key = load_ed25519(coordinator.federation_key)
    warrant = Warrant(
        federation=federation_of(key.public_key().public_bytes_raw()),
        run=launch.run,
        settings=settings_digest(launch.settings),
        expires=int(time.time()) + LIFETIME,
    ).signed(key)
    config = {
        **flatten(launch.settings),
        "run": launch.run,
        "warrant": warrant.text(),
        "nodes": launch.nodes,
        "wait": launch.wait,
        "round_patience": launch.round_patience,
        "only": ",".join(launch.only),
        "dry_run": launch.dry,
        "publish": launch.publish,
        "start": launch.start,
    }
    with Control(coordinator) as control:
        flower = control.start(build_bundle().signed_by(key), config)
    try:
        write_whole(launch.folder / ATTEMPT, json.dumps({"flower": flower}).encode())
    except StorageError:
        # Nobody would know of it: it would wait for the run's lock, and publish what the next attempt has published already.
        with suppress(FedfuseError), Control(coordinator) as control:
            control.stop(flower)
        raise
    return flower


def _running(launch: Launch) -> int | None:
    """An attempt that goes on though nobody watches it."""
    try:
        flower = int(json.loads((launch.folder / ATTEMPT).read_text(encoding="utf-8"))["flower"])
        with Control(launch.coordinator) as control:
            return None if control.run(flower).finished else flower
    except Unreachable:
        raise
    except (FedfuseError, OSError, ValueError, KeyError):
        return None  # Flower has forgotten it, or it never began


def _ended(launch: Launch) -> bool:
    """Whether the attempt says itself that it has ended, or has died silently."""
    state = read_state(launch.folder) or {}
    return state.get("state") in ("finished", "incomplete", "failed") or _killed(launch)


def _killed(launch: Launch) -> bool:
    """Whether the process of this attempt, which is on this machine, has died silently."""
    state = read_state(launch.folder) or {}
    try:
        began = (launch.folder / ATTEMPT).stat().st_mtime
        if state.get("state") != "running" or float(state["time"]) < began:
            return False
        if is_alive(int(state["process"])):
            return False
    except (OSError, KeyError, TypeError, ValueError):
        return False  # another user's, or of an older form: Flower will say
    # Read again: it may have ended well between the two looks.
    return (read_state(launch.folder) or {}).get("state") == "running"


def is_alive(process: int) -> bool:
    """Whether that process runs. One that nobody has waited for, as Flower does with those it starts, does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # it has just gone; or this system has no /proc to ask


def stop(launch: Launch) -> None:
    """Stop the attempt that runs, if one does; what was reached stays."""
    flower = _running(launch)
    if flower is not None:
        with Control(launch.coordinator) as control:
            control.stop(flower)


def _said(state: FlowerRun) -> str:
    return f"{state.result}: {state.details}" if state.details else state.result


def _failed(launch: Launch, state: dict[str, Any], failure: str) -> FedfuseError:
    found = str(state.get("why") or failure)
    error = FedfuseError(
        f"run {launch.run} failed after round {state.get('round', 0)}\n  {found}",
        where=str(launch.folder),
        do="mend it, then ask again" if launch.dry else f"mend it, then: fedfuse run --resume {launch.run}",
    )
    code = state.get("code")
    if state.get("state") == "failed" and code in list(ExitCode):
        error.exit_code = ExitCode(code)
    return error
