"""The bound of the trunk cache on disk: the oldest entries are evicted first, and never one that another process reads.

The bound holds between runs: what one run needs is always kept while it runs, and is cut when the next one opens the cache.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared.base.file_lock import try_lock

MOST_BYTES = 6 << 30
"""Features that a platform keeps on disk from one run to the next, of all backbones and cuts together, at most."""


class InUse:
    """A mark that this process reads a cache; it goes with the process.

    Args:
        path: Lock file beside the cache, 0600.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def alone(self) -> bool:
        """Whether no other process reads it at this moment."""
        try:
            return try_lock(self._descriptor)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)


def drop_others(folder: Path, keep: str, *, most: int) -> None:
    """Delete caches of other backbones or cuts, the longest unused first, until all together fit into `most` bytes."""
    others = sorted((path for path in folder.glob("trunk-*.bin") if path.stem != keep), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in folder.glob("trunk-*.bin"))
    for data in others:
        if total <= most:
            return
        if InUse(data.with_suffix(".use")).alone():
            total -= data.stat().st_size
            for suffix in (".idx", ".bin", ".use"):
                data.with_suffix(suffix).unlink(missing_ok=True)


def drop_oldest(data: Path, index: Path, row: np.dtype[np.void], bytes_of: Callable[[int], int], *, most: int) -> None:
    """Rewrite a cache so that its newest rows, in at most `most` bytes, are all it holds.

    Args:
        row: Of the index file; its field `length` counts tokens.
        bytes_of: Tokens -> bytes of the data file.
    """
    raw = index.read_bytes() if index.exists() else b""
    rows = np.frombuffer(raw[: len(raw) // row.itemsize * row.itemsize], row)
    sizes = np.asarray([bytes_of(int(length)) for length in rows["length"]], np.int64)
    if sizes.sum() <= most:
        return
    kept = int((np.cumsum(sizes[::-1]) <= most).sum())
    first = len(rows) - kept
    # The data first: should we die between the two, no checksum of the old index fits, and all is computed again.
    with data.open("rb") as old:
        old.seek(int(sizes[:first].sum()))
        _replace(data, old.read)
    tail = iter([rows[first:].tobytes(), b""])
    _replace(index, lambda _: next(tail))


def _replace(path: Path, read: Callable[[int], bytes]) -> None:
    part = path.with_suffix(path.suffix + ".new")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        while chunk := read(1 << 24):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
