"""Files that are whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shared.base.errors import InputError, StorageError

_BLOCK = 1 << 20
_SHA256 = 32
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path`; whoever reads meets the old bytes or the new ones, never a part.

    Raises:
        StorageError: it cannot be written (disk full, no permission); what was at `path` is still there.
    """
    with _draft(path, mode) as (draft, file):
        file.write(data)
        _settle(file)
        draft.replace(path)
        sync_folder(path.parent)


def write_checked(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """As `write_whole`, with a checksum before the bytes."""
    write_whole(path, hashlib.sha256(data).digest() + data, mode=mode)


def read_checked(path: Path) -> bytes:
    """What `write_checked` wrote.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: its checksum differs.
    """
    raw = path.read_bytes()
    data = raw[_SHA256:]
    if hashlib.sha256(data).digest() != raw[:_SHA256]:
        raise ValueError("its checksum differs")
    return data


def copy_whole(source: Path, path: Path) -> None:
    """Put a copy of `source` at `path`, block by block; as `write_whole`."""
    with _draft(path, 0o644) as (draft, file):
        with source.open("rb") as content:
            shutil.copyfileobj(content, file, _BLOCK)
        _settle(file)
        draft.replace(path)
        sync_folder(path.parent)


@contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """A hidden path beside `path` for others to write to; once the block is over and the bytes are on disk it takes the name.

    Raises:
        StorageError: it cannot be written; what was at `path` is still there.
    """
    with _draft(path, mode) as (draft, _):
        yield draft
        draft.chmod(mode)  # whoever wrote may have made a new file
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
        sync_folder(path.parent)


def create_whole(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Put `data` at `path` if nothing is there; of many writers one gets True. A hard link is made or not.

    Whatever is there stays, a dangling link too. Nobody but the owner can open the draft before it has its mode.

    Raises:
        StorageError: it cannot be written, or this file system has no hard links.
    """
    with _draft(path, mode) as (draft, file):
        file.write(data)
        _settle(file)
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return False
        sync_folder(path.parent)
    return True


def exchange(fresh: Path, old: Path) -> None:
    """Let two folders of one disk change places: on Linux in one step, so that there is never none at `old`.

    Raises:
        OSError: they cannot be moved.
    """
    try:
        library = ctypes.CDLL(None, use_errno=True)
        swap = library.renameat2
    except (OSError, AttributeError):
        swap = None
    if swap is not None:
        if swap(_AT_FDCWD, os.fsencode(fresh), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise OSError(code, os.strerror(code), str(old))
    # Without it there is a moment with nothing at `old`; what was there is then still beside it.
    aside = fresh.with_name(f"{fresh.name}.old")
    old.rename(aside)
    fresh.rename(old)
    aside.rename(fresh)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut; systems that cannot sync a folder need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_empty(folder: Path) -> None:
    """Check that nothing is in a folder, if it is there.

    Raises:
        InputError: something is.
        OSError: it cannot be looked at, or is no folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError("is not empty", where=str(folder), do="name a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """A folder (0700) to be filled; where that fails it is as it was before, so that the same command can be given again.

    Raises:
        InputError: it is not empty.
        StorageError: it cannot be made.
    """
    there = folder.exists()
    try:
        require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(
            f"cannot be made: {error.strerror or error}", where=str(folder), do="check space and rights"
        ) from error
    try:
        yield
    except BaseException:
        # Nobody has seen what was in it: it was empty, and is not finished.
        for made in folder.iterdir():
            if made.is_dir() and not made.is_symlink():
                shutil.rmtree(made, ignore_errors=True)
            else:
                made.unlink(missing_ok=True)
        if not there:
            with suppress(OSError):
                folder.rmdir()
        raise


def sync_way(folder: Path) -> None:
    """Make a folder's own name outlive a power cut, and those of all on the way to it that may be opened.

    Somebody may have made them a moment ago; those that may not be opened are not of our making.
    """
    for above in folder.resolve().parents:
        with suppress(PermissionError):
            sync_folder(above)


@contextmanager
def _draft(path: Path, mode: int) -> Iterator[tuple[Path, IO[bytes]]]:
    """A hidden file beside `path`, open for writing; afterwards it is gone, unless it was moved into its place."""
    draft = None
    try:
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            sync_folder(folder.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        with os.fdopen(handle, "wb") as file:
            draft.chmod(mode)
            yield draft, file
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(path), do="check space and rights"
        ) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _settle(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
