"""How much goes through the encoder at once, and less of it where memory does not suffice."""

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
ROW_STEP = 8
"""Rows of users that go through a matrix product together are filled up to a multiple of it."""
LENGTH_STEP = 16
"""Their sequences are padded to a multiple of it, the numbers in a processor's widest vector.

Both keep users apart to the last bit on a processor: a product of fewer than four rows takes another kernel and rounds otherwise,
and so does attention over eight tokens or fewer. Else whether a user is there would move the last bits of others, and an adapter
that makes items almost alike moves ranks by these. And a kernel is made once per shape, while Poisson samples have all sizes.
"""
T = TypeVar("T")


def whole(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some rows, filled up to a multiple of `ROW_STEP` with repeats.

    Args:
        rows: int64 (n, ...), n at least 1.

    Returns:
        int64 (m, ...), m the next multiple; the first n are the rows.

    >>> whole(np.array([5, 6, 7])).tolist()
    [5, 6, 7, 5, 6, 7, 5, 6]
    """
    return np.resize(rows, (-(-len(rows) // ROW_STEP) * ROW_STEP, *rows.shape[1:]))


class Passes:
    """Rows in passes of so many tokens, which out-of-memory halves.

    Args:
        device: Its type.
        tokens: Of a pass; 0: as the device takes well.
    """

    def __init__(self, device: str, *, tokens: int = 0) -> None:
        self._tokens = tokens or TOKENS.get(device, TOKENS["cpu"])

    def run(self, lengths: NDArray[np.int64], work: Callable[[slice], T]) -> Iterator[T]:
        """What `work` gives for each pass, in order.

        Args:
            lengths: int64 (n,), ascending, each 1 at least. Tokens of each row; a pass pads to its last one's.
            work: Gets the rows of a pass and gives what is not None; where memory did not suffice, it is asked again for the
                first of them.
        """
        begin = 0
        while begin < len(lengths):
            rows = slice(begin, begin + fit(lengths[begin:], self._tokens))
            done = within_memory(partial(work, rows), last=rows.stop == begin + 1)
            if done is None:
                self._tokens = int(lengths[rows.stop - 1]) * (rows.stop - begin) // 2
                log.warning("out of memory: %d tokens at a time from now on", self._tokens)
                continue
            yield done
            begin = rows.stop


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
