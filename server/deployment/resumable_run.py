"""A deployed run: what Flower's run configuration names, in the coordinator's folder, from its last checkpoint if it has one."""

from __future__ import annotations

import logging
import os
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from server.deployment.approved_platforms import Platforms
from server.deployment.bundle import RUN_KEYS
from server.deployment.folder import ENVIRONMENT, CoordinatorFolder, here
from server.monitoring.journal import Journal
from server.monitoring.metrics_file import RunMetricsFile
from server.monitoring.run_events import Outcome, Watcher
from server.monitoring.telemetry import log_events, together
from server.operators.acting import log_of
from server.operators.restored_state import require_current
from server.registry.publication import MODEL
from server.run.checkpoint import run_of
from server.run.federation import run_federation
from server.run.last_receipts import LastReceipts
from server.run.quotes import DryRun, ask_quotes
from server.run.run_record import RunRecord
from server.run.starting_adapter import starting_adapter
from shared.base.errors import ExitCode, FedfuseError, InputError, StorageError, shell_word
from shared.base.file_lock import lock_within
from shared.base.settings import Settings, unflatten
from shared.protocol.keys import load_ed25519
from shared.protocol.messages import NAME

log = logging.getLogger("fedfuse.run")

LEAVING = 60.0
"""Seconds that another process of this run is waited for. On a machine so busy that a process starts for longer than Flower waits
for it, Flower starts a second one and lets go of the first, which ends at its next word with Flower."""


def deployed(grid: Grid, config: Mapping[str, Any]) -> Outcome | DryRun:
    """The run that `config` describes, new or resumed; or what platforms say to it before it is one.

    Raises:
        InputError: no coordinator started this process, or a setting is wrong.
        StorageError: another process works on this run.
        FedfuseError: as `run_federation`.
    """
    coordinator = here()
    if coordinator is None:
        raise InputError(
            "no coordinator's folder is named", where=ENVIRONMENT, do="start the server with `fedfuse server start DIR`"
        )
    values = {**RUN_KEYS, **config}
    run, nodes, wait = str(values.pop("run")), int(values.pop("nodes")), float(values.pop("wait"))
    patience = float(values.pop("round_patience"))
    only = frozenset(name for name in str(values.pop("only")).split(",") if name)
    dry, publish = bool(values.pop("dry_run")), bool(values.pop("publish"))
    earlier = str(values.pop("start"))
    if not NAME.fullmatch(run) or (earlier and not NAME.fullmatch(earlier)):
        raise InputError(f"{run!r} is no name of a run", where="run", do="start runs with `fedfuse run`")
    for key in ("warrant", "world", "out"):
        values.pop(key, None)
    settings = unflatten(values, where="run_config")
    if dry:
        return _quoted(grid, coordinator, settings, run=run, nodes=nodes or None, wait=wait, only=only)
    out = coordinator.run(run)
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder=out, run=run, rounds=settings.rounds)
    with ExitStack() as stack:
        stack.enter_context(_alone(out))
        watchers: list[Watcher] = [log_events(run), journal]
        if coordinator.file.metrics_port:
            watchers.append(RunMetricsFile(out))
        try:
            outcome = run_federation(
                grid=grid,
                settings=settings,
                run=run,
                out=out,
                events=together(*watchers),
                resume=run_of(out) is not None,
                nodes=nodes or None,
                wait=wait,
                patience=patience,
                only=only,
                # Platforms show what they keep of the operators' log when they come, which may be after the run was begun.
                before=lambda: require_current(coordinator, log_of(coordinator)),
                **_lists(coordinator),
                signer=load_ed25519(coordinator.federation_key),
                acknowledged=LastReceipts(coordinator.receipts),
                start=starting_adapter(coordinator.run(earlier) / MODEL, settings) if earlier else None,
            )
            incomplete = bool(outcome.lost or outcome.open)
            version = (
                _incomplete(coordinator, outcome, settings.rounds)
                if incomplete
                else f"{_stopped(outcome)}{_publish(coordinator, outcome, allowed=publish)}"
            )
        except FedfuseError as error:
            journal.say("failed", why=str(error), code=int(error.exit_code))
            raise
        except BaseException as error:
            journal.say("failed", why=f"{type(error).__name__}: {error}", code=1)
            raise
        if incomplete:
            journal.say("incomplete", why=version, code=int(ExitCode.INCOMPLETE))
        else:
            journal.say("finished", why=version)
    return outcome


def _quoted(grid: Grid, coordinator: CoordinatorFolder, settings: Settings, *, run: str, **asked: Any) -> DryRun:
    """Ask the platforms, and leave their answers where `fedfuse run --dry-run` reads them."""
    out = coordinator.dry_run(run)
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder=out, run=run, rounds=settings.rounds)
    try:
        found = ask_quotes(
            grid=grid,
            settings=settings,
            run=run,
            say=RunRecord(together(log_events(run), journal)).say,
            **_lists(coordinator),
            **asked,
        )
        found.save(out)
    except FedfuseError as error:
        journal.say("failed", why=str(error), code=int(error.exit_code))
        raise
    journal.say("finished", why=found.why)
    return found


def _incomplete(coordinator: CoordinatorFolder, outcome: Outcome, rounds: int) -> str:
    """What is said of a run that lost rounds. No registry gets its model by itself: a person decides."""
    lost = f", and given up for good were: {', '.join(map(str, outcome.lost))}" if outcome.lost else ""
    again = f"; round {outcome.open} is asked for again by: fedfuse run --resume {outcome.run}" if outcome.open else ""
    said = f"{_stopped(outcome)}{outcome.rounds} of {rounds} rounds count{lost}{again}; the model is in {outcome.model}"
    if not coordinator.file.registry:
        return said
    return f"{said}, and is not published. {_by_hand(coordinator, outcome)}"


def _stopped(outcome: Outcome) -> str:
    return f"{outcome.stopped}; " if outcome.stopped else ""


def _by_hand(coordinator: CoordinatorFolder, outcome: Outcome) -> str:
    run, registry, key = map(shell_word, (outcome.model.parent, coordinator.file.registry, coordinator.model_key))
    return f"If it is wanted: fedfuse publish {run} {registry} --key {key}"


def _publish(coordinator: CoordinatorFolder, outcome: Outcome, *, allowed: bool) -> str:
    """Sign and publish the model, where `server.toml` names a registry and whoever runs may; says what was done."""
    if not coordinator.file.registry:
        return f"the model is in {outcome.model}"
    if not allowed:
        return (
            f"the model is in {outcome.model}, and is not published: who ran it has no right to. {_by_hand(coordinator, outcome)}"
        )
    from server.registry.published_note import note_published
    from server.registry.registry import Registry
    from server.registry.store import open_store
    from shared.registry.signing import load_signer

    signer = load_signer(coordinator.model_key)
    manifest = Registry(open_store(coordinator.file.registry), [signer.public]).publish(outcome.model.parent, signer)
    note_published(outcome.model.parent, coordinator.file.registry, manifest)
    return f"the model is in {outcome.model}, and version {manifest.version} of {coordinator.file.registry}"


def _lists(coordinator: CoordinatorFolder) -> dict[str, Any]:
    """`names` and `identities` of `run_federation`: a platform may be approved or revoked while the run goes on."""
    # One object, which reads the file again only after it changed: a run that waits looks 20 times a second.
    platforms = Platforms(coordinator.platforms)
    return {
        "names": lambda: {one.node: one.name for one in platforms.approved() if one.node},
        "identities": lambda: {one.name: b64decode(one.identity) for one in platforms.approved()},
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run's folder; a second process on one run would make a second history of it."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lock_within(handle, LEAVING):
            raise StorageError("another process works on this run", where=str(folder), do="wait for it, or stop it")
        yield
    finally:
        os.close(handle)
