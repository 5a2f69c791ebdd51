"""One interval over users and seeds: both are resampled, so that it covers who is on a platform and what noise was drawn.

The two-way bootstrap of crossed factors (Owen 2007, "The pigeonhole bootstrap"): a resample weighs seeds by one draw and users by
another. It is conservative where both matter; of few seeds it cannot say much about their spread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.evaluation.user_bootstrap import Estimate, estimate_of, resampled_counts

Floats = NDArray[np.float64]


def crossed_estimate(values: Floats, *, seed: int = 0) -> Estimate:
    """The mean over seeds and users, and its 95 % percentile interval.

    Args:
        values: float64 (seeds, users), NaN where a user was not held out under a seed; at least one number.
        seed: Of the bootstrap.

    >>> crossed_estimate(np.array([[0.5, 0.5], [0.5, np.nan]]))
    Estimate(value=0.5, low=0.5, high=0.5)
    """
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0), known.astype(np.float64)
    seeds = np.random.default_rng([seed, 1])
    drawn = []
    for users in resampled_counts(values.shape[1], seed=seed):
        times = np.stack(
            [np.bincount(row, minlength=len(values)) for row in seeds.integers(0, len(values), (len(users), len(values)))]
        )
        above, below = (((times @ part) * users).sum(1) for part in (total, count))
        drawn.append(np.divide(above, below, out=np.full(len(users), np.nan), where=below > 0))
    return estimate_of(float(total.sum() / count.sum()), np.concatenate(drawn))
