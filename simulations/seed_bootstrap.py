"""One interval over users and seeds: both are resampled, so that it covers who is on a platform and what noise was drawn.

The two-way bootstrap of crossed factors (Owen 2007, "The pigeonhole bootstrap"): a resample weighs seeds by one draw and users by
another. It is conservative where both matter; of few seeds it cannot say much about their spread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.evaluation.user_bootstrap import Estimate, estimate_of, resampled_counts

Floats = NDArray[np.float64]


def crossed_estimates(figures: Sequence[Floats], *, seed: int = 0) -> list[Estimate]:
    """Of every figure the mean over seeds and users, and its 95 % percentile interval, all from the same resamples.

    Args:
        figures: float64 (seeds, users) each, NaN where a user was not held out under a seed; at least one number.
        seed: Of the bootstrap.

    >>> crossed_estimates([np.array([[0.5, 0.5], [0.5, np.nan]])])
    [Estimate(value=0.5, low=0.5, high=0.5)]
    """
    if not figures:
        return []
    count, width = figures[0].shape
    known = [~np.isnan(values) for values in figures]
    sums = [(np.where(mask, values, 0.0), mask.astype(np.float64)) for values, mask in zip(figures, known, strict=True)]
    seeds = np.random.default_rng([seed, 1])
    drawn: list[list[Floats]] = [[] for _ in figures]
    for users in resampled_counts(width, seed=seed):
        times = np.stack([np.bincount(row, minlength=count) for row in seeds.integers(0, count, (len(users), count))])
        for parts, found in zip(sums, drawn, strict=True):
            above, below = (((times @ part) * users).sum(1) for part in parts)
            found.append(np.divide(above, below, out=np.full(len(users), np.nan), where=below > 0))
    return [
        estimate_of(float(total.sum() / there.sum()), np.concatenate(found))
        for (total, there), found in zip(sums, drawn, strict=True)
    ]
