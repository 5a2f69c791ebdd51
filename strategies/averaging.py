"""The weighted mean of updates, as they arrive: one buffer, however many platforms there are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shared.model.adapter import Layout
from shared.protocol.messages import Arrays

Change = dict[str, NDArray[np.float64]]
"""A combined change of the adapter, in float64 until the strategy applies it."""


class WeightedMean:
    """Sum of w_i c_i over the sum of w_i (McMahan et al. 2017, Algorithm 1, with w_i the declared users).

    The sum is in float64: a float32 value times a weight below 2^29 is exact there, so one platform's mean *is* its
    update, and the order of arrival moves the result by about 1e-16 of its size.

    >>> mean = WeightedMean({"head.lora_B": (1, 2)})
    >>> mean.add({"head.lora_B": np.array([[1.0, 2.0]], np.float32)}, weight=1)
    >>> mean.add({"head.lora_B": np.array([[5.0, 2.0]], np.float32)}, weight=3)
    >>> mean.change()["head.lora_B"].tolist()
    [[4.0, 2.0]]
    """

    def __init__(self, layout: Layout) -> None:
        buffer = np.zeros(sum(math.prod(shape) for shape in layout.values()), np.float64)
        self._sums: Change = {}
        start = 0
        for name, shape in layout.items():
            end = start + math.prod(shape)
            self._sums[name] = buffer[start:end].reshape(shape)
            start = end
        self._weight = 0

    def add(self, change: Arrays, *, weight: int) -> None:
        """Add one update; its arrays are not kept.

        Args:
            change: As the layout says, float32, finite.
            weight: Declared users, at least 1.
        """
        for name in self._sums:
            self._sums[name] += np.multiply(change[name], float(weight), dtype=np.float64)
        self._weight += weight

    def change(self) -> Change:
        """The mean of what was added; at least one update must have been."""
        return {name: total / self._weight for name, total in self._sums.items()}
