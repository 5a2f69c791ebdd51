"""Token-budgeted batching; halves the batch on out-of-memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

log = logging.getLogger("fedfuse.memory")

TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens, padding included, that are encoded at once, by device: on a processor less costs more calls and more does not gain."""
TOKENS_APART = {"cpu": 4096, "cuda": 16384}
"""The same where rows are of users; on a GPU each length's last pass is filled up to as many."""
ROW_STEP = 8
"""Rows of users that a processor multiplies together are filled up to a multiple of it."""
LENGTH_STEP = 16
"""Their sequences are padded to a multiple of it there, the numbers in a processor's widest vector.

Both keep users apart to the last bit on a processor: a product of fewer than four rows takes another kernel and rounds otherwise,
and so does attention over eight tokens or fewer. Else whether a user is there would move the last bits of others, and an adapter
that makes items almost alike moves ranks by these. And a kernel is made once per shape, while Poisson samples have all sizes.

A GPU's libraries choose a kernel for every shape. There, and in compiled code, the shape that a user's row is computed in is a
function of that user's length alone: a pass has rows of one length, and always as many.
"""
FIXED_LENGTH_STEP = 64
"""As `LENGTH_STEP` where each length costs a pass of its own."""
T = TypeVar("T")


def fixed_shapes(device: str, *, compiled: bool = False) -> bool:
    """Whether users are kept apart by shapes that their own length alone decides, and not by multiples."""
    return compiled or device != "cpu"


def length_step(device: str, *, compiled: bool = False) -> int:
    """What sequences of users are padded to a multiple of."""
    return FIXED_LENGTH_STEP if fixed_shapes(device, compiled=compiled) else LENGTH_STEP


def stepped(rows: int) -> int:
    """The next multiple of `ROW_STEP`.

    >>> stepped(3), stepped(8)
    (8, 8)
    """
    return -(-rows // ROW_STEP) * ROW_STEP


def filled(rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Some rows, filled up to so many with repeats.

    Args:
        rows: int64 (n, ...), n at least 1 and at most `size`.

    Returns:
        int64 (size, ...); the first n are the rows.

    >>> filled(np.array([5, 6, 7]), 8).tolist()
    [5, 6, 7, 5, 6, 7, 5, 6]
    """
    return np.resize(rows, (size, *rows.shape[1:]))


def alike(lengths: NDArray[np.int64]) -> int:
    """How many of the first rows are as long as the first.

    Args:
        lengths: int64 (n,), ascending, n at least 1.

    >>> alike(np.array([16, 16, 32]))
    2
    """
    return int(np.searchsorted(lengths, lengths[0], side="right"))


class Passes:
    """Rows in passes of so many tokens, which out-of-memory halves.

    Args:
        device: Its type.
        tokens: Of a pass; 0: as the device takes well.
        apart: Whether rows are of users, and what is computed of one may not depend on the others. On a processor passes are then
            filled up to a multiple of `ROW_STEP`; elsewhere a pass holds rows of one length and is filled up to a number that
            the length decides.
    """

    def __init__(self, device: str, *, tokens: int = 0, apart: bool = False) -> None:
        defaults = TOKENS_APART if apart else TOKENS
        self._tokens = tokens or defaults.get(device, defaults["cpu"])
        self._apart, self._fixed = apart, apart and fixed_shapes(device)

    def run(self, lengths: NDArray[np.int64], work: Callable[[slice, int], T]) -> Iterator[T]:
        """What `work` gives for each pass, in order.

        Args:
            lengths: int64 (n,), ascending, each 1 at least. Tokens of each row; a pass pads to its last one's.
            work: Gets the rows of a pass and how many they are filled up to, and gives what is not None; where memory did not
                suffice, it is asked again for the first of them.
        """
        begin = 0
        while begin < len(lengths):
            count, size = self._next(lengths[begin:])
            rows = slice(begin, begin + count)
            done = within_memory(partial(work, rows, size), last=size <= (ROW_STEP if self._apart and not self._fixed else 1))
            if done is None:
                self._tokens = int(lengths[rows.stop - 1]) * size // 2
                log.warning("out of memory: %d tokens at a time from now on", self._tokens)
                continue
            yield done
            begin = rows.stop

    def _next(self, lengths: NDArray[np.int64]) -> tuple[int, int]:
        """Rows of the next pass, and how many they are filled up to."""
        if self._fixed:
            size = max(1, self._tokens // int(lengths[0]))
            return min(size, alike(lengths)), size
        count = fit(lengths, self._tokens)
        return count, stepped(count) if self._apart else count


def fit(lengths: NDArray[np.int64], tokens: int) -> int:
    """How many of the first rows hold no more than so many tokens, all padded to the last of them; 1 at least.

    Args:
        lengths: int64 (n,), ascending, n at least 1, each 1 at least.

    >>> fit(np.array([2, 3, 4, 4]), 12), fit(np.array([2, 3, 4, 4]), 11), fit(np.array([20, 30]), 12)
    (3, 2, 1)
    """
    # More than would fit if all were as short as the first need not be looked at.
    near = lengths[: tokens // int(lengths[0]) + 1]
    return max(1, int((np.arange(1, len(near) + 1) * near <= tokens).sum()))


def within_memory(work: Callable[[], T], *, last: bool) -> T | None:
    """What `work` gives, or None where memory did not suffice for it.

    Args:
        last: There is no less to try: the error goes on.
    """
    try:
        return work()
    except RuntimeError as error:
        if last or not _out_of_memory(error):
            raise
    # Not in the handler: the error holds what had been allocated.
    torch.cuda.empty_cache()
    return None


def _out_of_memory(error: RuntimeError) -> bool:
    # CUDA says it by type, the others in words.
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in said or "out of memory" in said
