"""Locks that die with their process."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process alone, at once; whether it has the lock, which another process may hold."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_within(descriptor: int, seconds: float) -> bool:
    """The same within some seconds, trying again all the while."""
    end = time.monotonic() + seconds
    while not try_lock(descriptor):
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """The same for a while, however long it takes until another process lets go."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
