"""Published models: pull one from a folder or a URL, checked byte for byte before it takes its place."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec

from server.manifest import MANIFEST, MAX_MANIFEST, Entry, Manifest, parse, publish
from shared.durable import sync_folder
from shared.errors import FedfuseError, InputError, StorageError

MAX_TOTAL = 1 << 33
"""Bytes of the largest model that `pull` fetches, unless it is told otherwise."""
_BLOCK = 1 << 20
Open = Callable[[str], IO[bytes]]
"""Opens a file of the source by its name in the manifest; FileNotFoundError if there is none."""


@dataclass(frozen=True, kw_only=True)
class PulledModel:
    """A model that was pulled and checked.

    Args:
        folder: Where it lies now.
        source: Where it came from.
        manifest: What it consists of; every file was checked against it.
    """

    folder: Path
    source: str
    manifest: Manifest


def pull(source: str, out: Path, *, max_bytes: int = MAX_TOTAL) -> PulledModel:
    """Copy a published model to `out`, which appears whole and checked, or not at all.

    Args:
        source: A folder or any URL that fsspec opens; of a run, or of the model itself.
        out: A folder that does not exist yet, or is empty.
        max_bytes: Most that is fetched.

    Raises:
        InputError: `out` is in use, there is no manifest, or it names files outside the model.
        StorageError: a file is missing, a link, or not what the manifest says; or the disk is full.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError("is there already and not empty", where=str(out), do="name another folder, or remove this one first")
    where, opener, data = _find(source)
    manifest = parse(data, where)
    if manifest.size > max_bytes:
        raise InputError(
            f"the model has {manifest.size} bytes, the limit is {max_bytes}", where=where, do="raise the limit if you trust it"
        )
    draft = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        for entry in manifest.files:
            _fetch(entry, opener, draft / entry.name, where)
        (draft / MANIFEST).write_bytes(data)
        draft.chmod(0o755)
        if out.exists():
            out.rmdir()
        draft.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise StorageError(
            f"cannot be copied: {error.strerror or error}", where=f"{where} -> {out}", do="check space and rights"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return PulledModel(folder=out, source=where, manifest=manifest)


def _find(source: str) -> tuple[str, Open, bytes]:
    """Where the model is, how to open its files, and its manifest; a run's folder holds it in `model/`."""
    for place in (source.rstrip("/") or source, f"{source.rstrip('/')}/model"):
        opener = _opener(place)
        try:
            with opener(MANIFEST) as file:
                data = file.read(MAX_MANIFEST + 1)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except FedfuseError:
            raise
        except Exception as error:
            raise _unreadable(error, place) from error
        if len(data) > MAX_MANIFEST:
            raise InputError(f"{MANIFEST} is larger than {MAX_MANIFEST} bytes", where=place, do="this is not a published model")
        return place, opener, data
    raise InputError(f"there is no {MANIFEST}", where=source, do="name a published model: the `model` folder of a finished run")


def _opener(place: str) -> Open:
    try:
        system, root = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot be opened: {error}", where=place, do="name a folder or a URL that fsspec knows") from None
    if "file" not in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol):
        # Not cached and not read ahead: every byte is read once, and counted.
        return lambda name: system.open(f"{root.rstrip('/')}/{name}", "rb")
    folder = Path(root)

    def open_plain(name: str) -> IO[bytes]:
        # No step below the folder may be a link: it could show a file that the model does not consist of.
        path = folder
        for part in name.split("/"):
            path = path / part
            if path.is_symlink():
                raise StorageError("is a symbolic link", where=str(path), do="publish the model again, with the file itself")
        return path.open("rb")

    return open_plain


def _fetch(entry: Entry, opener: Open, target: Path, where: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        source = opener(entry.name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _differs(entry, "is missing", where) from None
    except FedfuseError:
        raise
    except Exception as error:
        raise _unreadable(error, where) from error
    with source, target.open("wb") as file:
        # One byte more than declared is enough to know, so a source without end cannot fill the disk.
        while size <= entry.size and (block := _read(source, min(_BLOCK, entry.size + 1 - size), where)):
            digest.update(block)
            size += len(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if size != entry.size:
        raise _differs(entry, f"has {'more' if size > entry.size else size} bytes, not {entry.size}", where)
    if digest.hexdigest() != entry.sha256:
        raise _differs(entry, "has another SHA-256", where)


def _read(source: IO[bytes], size: int, where: str) -> bytes:
    try:
        return source.read(size)
    except Exception as error:
        raise _unreadable(error, where) from error


def _differs(entry: Entry, how: str, where: str) -> StorageError:
    return StorageError(
        f"{entry.name} {how}", where=where, do="the copy is damaged or was changed: publish it again, or pull from elsewhere"
    )


def _unreadable(error: Exception, where: str) -> StorageError:
    return StorageError(f"cannot be read: {type(error).__name__}: {error}", where=where, do="check the address and the network")


__all__ = ["MAX_TOTAL", "PulledModel", "publish", "pull"]
