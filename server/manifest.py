"""The manifest of a published model: which files it has, how large they are, and their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.durable import write_whole
from shared.errors import InputError
from shared.settings import explain

MANIFEST = "manifest.json"
FORMAT = 1
MAX_FILE = 1 << 32
"""Bytes of the largest file that a model may have."""
MAX_FILES = 1000
MAX_MANIFEST = 1 << 20
_BLOCK = 1 << 20


class Entry(BaseModel):
    """One file of a model.

    Args:
        name: Path inside the model's folder, with `/`.
        size: Bytes.
        sha256: Of the bytes, in hex.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    size: Annotated[int, Field(ge=0, le=MAX_FILE)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @model_validator(mode="after")
    def _inside(self) -> Entry:
        require_inside(self.name)
        return self


class Manifest(BaseModel):
    """Every file of a published model, sorted by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    files: Annotated[tuple[Entry, ...], Field(min_length=1, max_length=MAX_FILES, strict=False)]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format}, this version reads {FORMAT}")
        names = [entry.name for entry in self.files]
        if names != sorted(set(names)):
            raise ValueError("the files are not sorted by name, each once")
        if len({name.casefold() for name in names}) < len(names):
            # On a disk that ignores case, one of them would take the other's place after its check.
            raise ValueError("two files differ only in the case of their names")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files)


def require_inside(name: str) -> None:
    """Check that a name can only mean a file inside the model's folder, on any system.

    Raises:
        ValueError: it is absolute, climbs out, or holds something that a path of a model has no use for.
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and len(part) <= 255 and part.isprintable() for part in parts)
    if not plain or "\\" in name or ":" in name or len(parts) > 8 or name == MANIFEST:
        raise ValueError(f"{name!r} is not a path inside the model")


def publish(folder: Path) -> Manifest:
    """Write the manifest of the files in `folder`; hidden files are left out. This is the last step: it appears whole.

    Raises:
        InputError: the folder has no file, or something in it is a link.
    """
    entries = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *files]:
            if (Path(root) / name).is_symlink():
                raise InputError("is a symbolic link", where=str(Path(root) / name), do="put the file itself there")
        entries += [entry_of(folder, Path(root) / name) for name in files if not name.startswith(".") and name != MANIFEST]
    if not entries:
        raise InputError("there is no model to publish", where=str(folder), do="name the folder that holds the model's files")
    manifest = build({"format": FORMAT, "files": [entry.model_dump() for entry in sorted(entries, key=lambda e: e.name)]}, folder)
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    write_whole(folder / MANIFEST, text.encode())
    return manifest


def entry_of(folder: Path, path: Path) -> Entry:
    """The entry of a file that is there."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    name = str(PurePosixPath(path.relative_to(folder)))
    return build_entry({"name": name, "size": size, "sha256": digest.hexdigest()}, path)


def build_entry(values: object, where: object) -> Entry:
    """A checked entry.

    Raises:
        InputError: it cannot be published.
    """
    try:
        return Entry.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error), where=str(where), do="rename the file, or split it") from None


def build(values: object, where: object) -> Manifest:
    """A checked manifest.

    Raises:
        InputError: it is not one, of this format.
    """
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error), where=str(where), do="publish the model again") from None


def parse(data: bytes, where: str) -> Manifest:
    """The manifest in `data`.

    Raises:
        InputError: it is not one, of this format.
    """
    try:
        values = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{MANIFEST} is not JSON ({type(error).__name__})", where=where, do="publish the model again") from None
    return build(values, where)
