"""When an answer leaves: after a whole number of public steps, since how long rows took says something of them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The times at which answers made from rows may leave.

    Args:
        step: Seconds between them; 0 lets an answer leave as soon as it is there, as in a simulation.
    """

    step: float

    def of(self, elapsed: float) -> float:
        """A duration as it may leave: the next whole step, in seconds.

        >>> Pace(step=5.0).of(12.3), Pace(step=5.0).of(10.0), Pace(step=0.0).of(12.345)
        (15.0, 10.0, 12.3)
        """
        if not self.step:
            return round(elapsed, 1)
        return round(max(1, math.ceil(round(elapsed / self.step, 6))) * self.step, 6)

    def wait(self, began: float) -> None:
        """Sleep until the answer to what began then (`time.monotonic`) may leave."""
        if self.step:
            elapsed = time.monotonic() - began
            time.sleep(max(0.0, self.of(elapsed) - elapsed))
