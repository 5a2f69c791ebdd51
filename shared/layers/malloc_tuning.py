"""Has the C library's heap keep what a training step frees: the next step asks for the same again.

By itself glibc gives much of it back to the system, and every page that comes again costs a fault and a page of zeros.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

KEPT = 512 << 20
"""Bytes that a process keeps free at most."""
_USUAL = 32 << 20
"""What glibc's own threshold of mmap grows to at most."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>


@cache
def keep() -> bool:
    """Keep up to `KEPT` bytes from now on, in this process.

    Returns:
        Whether the C library has these settings; another one stays as it is.
    """
    return set_thresholds(mmap=KEPT, trim=KEPT)


def give_back() -> bool:
    """End `keep`: large blocks come from the system alone again, and what is free goes back to it.

    For what comes after training in the same process: arrays of hundreds of megabytes, each of another size, leave holes in a
    heap that keeps them.

    Returns:
        Whether the C library took the settings.
    """
    keep.cache_clear()
    if not set_thresholds(mmap=_USUAL, trim=_USUAL):
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


def set_thresholds(*, mmap: int, trim: int) -> bool:
    """Set from how many bytes on a block comes from the system alone, and beyond how many free ones are given back.

    Returns:
        Whether the C library took both.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_THRESHOLD, mmap) == 1, mallopt(_TRIM_THRESHOLD, trim) == 1])
