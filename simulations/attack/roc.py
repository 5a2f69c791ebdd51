"""How well scores tell canaries that are in from those that are out, at every threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from simulations.attack.one_run import CanaryScores, Floats

LOW = 0.01
"""False-positive rate at which membership attacks are compared (Carlini et al. 2022)."""


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """A receiver operating characteristic.

    Args:
        false_positive, true_positive: float64 (thresholds,), from (0, 0) to (1, 1).
    """

    false_positive: Floats = field(repr=False)
    true_positive: Floats = field(repr=False)

    @property
    def area(self) -> float:
        """AUROC: 1/2 for a guess, 1 for certainty."""
        return float(np.trapezoid(self.true_positive, self.false_positive))

    def points(self, most: int) -> tuple[tuple[float, float], ...]:
        """So many (false-positive rate, true-positive rate) at most, evenly chosen, the first and the last among them."""
        count = len(self.false_positive)
        chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
        return tuple((float(self.false_positive[one]), float(self.true_positive[one])) for one in chosen)

    def at(self, rate: float = LOW) -> float:
        """The largest true-positive rate whose false-positive rate is `rate` at most."""
        return float(self.true_positive[self.false_positive <= rate].max())


def roc_of(scores: CanaryScores) -> RocCurve:
    """The curve of some scores; canaries of equal score enter together.

    >>> curve = roc_of(CanaryScores(score=np.array([1.0, 2.0, 3.0, 4.0]), inside=np.array([False, True, False, True])))
    >>> curve.area, curve.at(0.0)
    (0.75, 0.5)
    """
    order = np.argsort(-scores.score, kind="stable")
    inside = scores.inside[order]
    last = np.append(np.diff(scores.score[order]) != 0, True)
    true, false = np.cumsum(inside)[last], np.cumsum(~inside)[last]
    return RocCurve(false_positive=np.append(0.0, false / false[-1]), true_positive=np.append(0.0, true / true[-1]))
