"""What shows that a registry of models, or the coordinator's folder beside it, was put back to an earlier day.

They are backed up apart. A run's folder notes which version its model became, and a version names its run: each knows of the
other.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from server.deployment.folder import CoordinatorFolder
from server.operators.operator_log import OperatorLog
from server.registry.published_note import PublishedNote, read_note
from server.registry.registry import Registry
from server.registry.store import open_store
from shared.doctor.findings import Finding, fault, fine
from shared.registry.manifest import Manifest
from shared.registry.signing import load_trusted

_WHAT = "registry"


def check_registry(coordinator: CoordinatorFolder, log: OperatorLog) -> Iterator[Finding]:
    """Whether the registry of `server.toml` has what runs became there, and the log knows the run of its newest version.

    Raises:
        FedfuseError: it cannot be read, or its newest version is not signed by this coordinator.
    """
    if not coordinator.file.registry:
        return
    trusted = [load_trusted(coordinator.model_key.with_suffix(".pub"))]
    registry = Registry(open_store(coordinator.file.registry), trusted)
    newest = registry.newest()
    noted = max(_notes(coordinator), key=lambda pair: pair[1].version, default=None)
    if noted is not None:
        run, note = noted
        if newest is None or newest.version < note.version:
            yield fault(
                _WHAT,
                f"its newest version is {newest.version if newest else 'none'}, and run {run} became version {note.version}: "
                "an older copy was put back",
                "put back the newest copy; who has pulled the later version refuses this one. If there is none, publish to a "
                "new registry (fedfuse publish), and say so to those who pull",
            )
            return
        if _version(registry, newest, note.version).sha256 != note.sha256:
            yield fault(
                _WHAT,
                f"its version {note.version} is not what run {run} published: an older copy was put back and went on, or "
                "somebody else signs with this coordinator's key",
                "compare with the models that were pulled, and put back the copy that they are of",
            )
            return
    if newest is None:
        yield fine(_WHAT, "empty")
    elif _later_than_all(newest, log):
        yield fault(
            _WHAT,
            f"its newest version {newest.version} is of run {newest.origin.run} ({newest.origin.created}), of which no "
            "operator's line speaks: this folder is an older copy than the registry, or somebody else signs with its key",
            "put back the newest copy of the coordinator's folder; without one ask every operator what they did since "
            f"{log.actions[-1].time}, and revoke again whom they revoked",
        )
    else:
        yield fine(_WHAT, f"version {newest.version} of run {newest.origin.run} is the newest, and is what was published")


def _notes(coordinator: CoordinatorFolder) -> Iterator[tuple[str, PublishedNote]]:
    """Runs whose models became versions of the registry that there is now."""
    for folder in sorted((coordinator.folder / "runs").glob("*")):
        note = read_note(folder)
        if note is not None and _same(note.registry, coordinator.file.registry):
            yield folder.name, note


def _same(one: str, other: str) -> bool:
    """Whether two addresses are of one registry; a folder's may be spelled in two ways."""
    return one == other or ("://" not in one + other and Path(one).absolute() == Path(other).absolute())


def _version(registry: Registry, newest: Manifest, number: int) -> Manifest:
    return next(one for one in registry.back(newest) if one.version == number)


def _later_than_all(newest: Manifest, log: OperatorLog) -> bool:
    """Whether a version was made in the time of the log, of a run of which it says nothing."""
    if any(one.of == newest.origin.run for one in log.actions):
        return False
    return datetime.datetime.fromisoformat(newest.origin.created) > datetime.datetime.fromisoformat(log.actions[0].time)
