"""How many users go through one backward pass together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.compute.batching import fit

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
        compiled: Whether every pass has to be of one size.
    """

    def __init__(self, device: str, *, asked: int = 0, compiled: bool = False) -> None:
        defaults = COMPILED if compiled else SEQUENCES
        self.sequences = asked or defaults.get(device, defaults["cpu"])
        self._as_asked = bool(asked) or compiled

    def users(self, lengths: NDArray[np.int64], each: int) -> int:
        """How many of the first users the next pass takes, 1 at least.

        Args:
            lengths: int64 (users,), ascending. Tokens of each user's longest sequence, as padded.
            each: Sequences a user.
        """
        most = max(1, self.sequences // each)
        if self._as_asked:
            return most
        most = min(most, fit(each * np.maximum(lengths, LENGTH), self.sequences * LENGTH))
        passes = -(-len(lengths) // most)
        # As many passes of about the same size: a small one costs nearly as much as a large one.
        return -(-len(lengths) // passes)

    def halve(self) -> None:
        """From now on half as many."""
        self.sequences = max(1, self.sequences // 2)
