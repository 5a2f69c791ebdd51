"""When an answer leaves: at one of few public moments, since how long rows took says something of them.

The moments after a question are s, 1.25 s, 1.25^2 s, ...: whatever the work, one user's rows move an answer by a moment only if
they make the whole of it take about a quarter longer, or if it ended close before one.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

GROWTH = 1.25
"""A moment over the one before it."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The times at which answers made from rows may leave.

    Args:
        step: Seconds to the first of them; 0 lets an answer leave as soon as it is there, as in a simulation.
    """

    step: float

    def of(self, elapsed: float) -> float:
        """A duration as it may leave: the next moment, in seconds.

        >>> Pace(step=4.0).of(0.3), Pace(step=4.0).of(4.2), Pace(step=4.0).of(6.25), Pace(step=0.0).of(12.345)
        (4.0, 5.0, 6.25, 12.3)
        """
        if not self.step:
            return round(elapsed, 1)
        moment = math.ceil(math.log(max(1.0, elapsed / self.step)) / math.log(GROWTH) - 1e-3)
        return round(self.step * GROWTH**moment, 6)

    def wait(self, began: float) -> None:
        """Sleep until the answer to what began then (`time.monotonic`) may leave."""
        if self.step:
            elapsed = time.monotonic() - began
            time.sleep(max(0.0, self.of(elapsed) - elapsed))
