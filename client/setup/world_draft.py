"""`fedfuse world draft`: a first platform file for a simulation, from nothing but exported tables."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.config.platform_file import load
from client.setup.platform_file_draft import draft
from client.setup.provisioning import samples_of
from client.setup.schema_inference import Guess
from client.setup.table_preview import Sample
from client.sources.platform_tables import read_tables
from shared.base.atomic_files import write_whole
from shared.base.errors import InputError
from shared.protocol.messages import NAME

_EPSILON = 8.0
_FIRST_USERS = 1000


@dataclass(frozen=True, kw_only=True)
class DraftedPlatform:
    """What was drafted.

    Args:
        path: The platform file.
        users: Declared in it: more than the tables have, in two figures.
        guesses: What each table was taken for; None where it was left out.
    """

    path: Path
    name: str
    users: int
    guesses: list[tuple[Sample, Guess | None]]


def draft_platform(exports: Sequence[Path], world: Path, *, name: str | None = None) -> DraftedPlatform:
    """Write a platform file into a world's folder. The tables stay where they are.

    Args:
        exports: Files of tables, or folders of them, all of one platform. Of relative ones the platform file has relative paths,
            so that it can be moved together with them.
        world: Folder of platform files; made if missing.
        name: Of the platform; by default the first export's.

    Raises:
        InputError: a table cannot be read, none has interactions, or the world has a platform of that name.
        StorageError: the file cannot be written.
    """
    chosen = _name(exports[0]) if name is None else name
    if not NAME.fullmatch(chosen):
        raise InputError(
            f"{chosen!r} is no name of a platform", where="--name", do="use lower-case letters, digits, '-' and '_', 63 at most"
        )
    path = world / f"{chosen}.toml"
    if path.exists():
        raise InputError("is there already", where=str(path), do="name another platform with --name, or remove the file")
    samples = samples_of(exports)
    if not any(export.is_absolute() for export in exports):
        samples = [_relative(sample) for sample in samples]

    def written(users: int) -> list[tuple[Sample, Guess | None]]:
        delta = min(1e-5, 0.1 / users)
        text, guesses = draft(
            chosen, samples, coordinator=None, folder=world, check=path, users=users, epsilon=_EPSILON, delta=delta
        )
        write_whole(path, text.encode())
        return guesses

    guesses = written(_FIRST_USERS)
    # The draft itself says how its tables are read, so how many users there are is known from it.
    users = _rounded_up(read_tables(load(path)).users)
    written(users)
    return DraftedPlatform(path=path, name=chosen, users=users, guesses=guesses)


def _relative(sample: Sample) -> Sample:
    """With a path from the working directory, which a draft makes one from the platform file."""
    if "path" not in sample.keys:
        return sample  # a database's URL names its file from the root
    path = sample.keys["path"]
    shown = [os.path.relpath(one) for one in path] if isinstance(path, list) else os.path.relpath(str(path))
    return replace(sample, keys={**sample.keys, "path": shown})


def _name(export: Path) -> str:
    """A platform's name from a file's or folder's."""
    stem = export.absolute().name.partition(".")[0] if not export.is_dir() else export.absolute().name
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_") or "platform"


def _rounded_up(users: int) -> int:
    """To more, in two figures: what is declared is public, and should not be exact.

    >>> _rounded_up(943), _rounded_up(100_000), _rounded_up(7)
    (950, 110000, 10)
    """
    step: int = max(10 ** (len(str(users)) - 2), 10)
    return (users // step + 1) * step
