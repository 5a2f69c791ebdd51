"""Files that only grow: a line is on disk, or the file is as long as it was."""

from __future__ import annotations

import os
from contextlib import suppress


def append_synced(descriptor: int, line: bytes, *, length: int) -> None:
    """Append to an open file of that length, and sync; or leave it as long as it was.

    Raises:
        OSError: it could not be written.
    """
    try:
        written = 0
        while written < len(line):  # a short write is legal; the next one says why
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):  # if even this fails, a torn line is left, which readers know
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        raise
