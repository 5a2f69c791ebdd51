"""A note in a run's folder of where its model was published, for whoever lists runs; the registry itself is the proof."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from server.registry.publication import MODEL
from shared.base.atomic_files import write_whole
from shared.registry.manifest import Manifest

NOTE = "published.json"


@dataclass(frozen=True, kw_only=True)
class PublishedNote:
    """What a run's model became.

    Args:
        registry: Its address.
        sha256: Of the version's manifest.
    """

    registry: str
    version: int
    sha256: str


def note_published(run: Path, registry: str, manifest: Manifest) -> None:
    """Write it.

    Args:
        run: The run's folder, or its `model` folder.

    Raises:
        StorageError: it cannot be written; the model is published all the same.
    """
    folder = run.parent if run.name == MODEL else run
    values = {"registry": registry, "version": manifest.version, "name": manifest.origin.name, "sha256": manifest.sha256}
    write_whole(folder / NOTE, (json.dumps(values, indent=1) + "\n").encode())


def read_note(run: Path) -> PublishedNote | None:
    """The note in a run's folder; None if there is none that can be read."""
    try:
        values = json.loads((run / NOTE).read_bytes())
        return PublishedNote(
            registry=str(values.get("registry", "")), version=int(values["version"]), sha256=str(values.get("sha256", ""))
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def published_version(run: Path) -> int:
    """The version that the note in a run's folder names; 0 if there is none."""
    note = read_note(run)
    return 0 if note is None else note.version
