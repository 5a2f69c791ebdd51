"""Users per backward pass; halved on out-of-memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from client.compute.batching import alike, fit, fixed_shapes, stepped

SEQUENCES = {"cpu": 64, "cuda": 256}
"""Sequences of one pass, at most, by device: a larger pass shares what every pass costs, and takes more memory."""
COMPILED = {"cpu": 32, "cuda": 256}
"""The same for compiled code, whose passes are all filled up to it."""
LENGTH = 64
"""Tokens of a sequence up to which a pass takes all of them; of longer ones it takes fewer, the memory being the same."""


class MicroBatch:
    """The size of a pass, which out-of-memory halves.

    Args:
        device: Its type.
        asked: Sequences, as the settings say; 0: as the device takes well.
        compiled: Whether the pass is compiled code, in which a shape costs seconds.
        expected: Users in a step's batch, as the plan says; a pass of one shape is no larger.
    """

    def __init__(self, device: str, *, asked: int = 0, compiled: bool = False, expected: float = math.inf) -> None:
        defaults = COMPILED if compiled else SEQUENCES
        self.sequences = asked or defaults.get(device, defaults["cpu"])
        self._as_asked = bool(asked) or compiled
        self._fixed, self._expected = fixed_shapes(device, compiled=compiled), expected

    def users(self, lengths: NDArray[np.int64], each: int) -> tuple[int, int]:
        """How many of the first users the next pass takes, 1 at least, and how many it is filled up to.

        Args:
            lengths: int64 (users,), ascending. Tokens of each user's longest sequence, as padded.
            each: Sequences a user.
        """
        if self._fixed:
            size = self._most(lengths[:1], each)
            if size > self._expected:
                size = min(size, stepped(math.ceil(self._expected)))
            return min(size, alike(lengths)), size
        most = self._most(lengths, each)
        passes = -(-len(lengths) // most)
        # As many passes of about the same size: a small one costs nearly as much as a large one.
        count = most if self._as_asked else -(-len(lengths) // passes)
        return count, stepped(min(count, len(lengths)))

    def _most(self, lengths: NDArray[np.int64], each: int) -> int:
        """Users that memory takes well; of one user there is no less."""
        most = max(1, self.sequences // each)
        if self._as_asked:
            return most
        tokens = self.sequences * LENGTH
        if self._fixed:
            return max(1, min(most, tokens // (each * max(int(lengths[0]), LENGTH))))
        return min(most, fit(each * np.maximum(lengths, LENGTH), tokens))

    def halve(self) -> None:
        """From now on half as many."""
        self.sequences = max(1, self.sequences // 2)
