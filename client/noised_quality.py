"""Ranking quality that leaves a platform: sums over users under noise, and their quotient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from client.evaluation import Quality, per_user
from client.mechanism import CountMechanism
from client.noise import NoiseSource

_METRICS = 3


def noised_quality(
    rank: NDArray[np.float64], candidates: NDArray[np.int64], mechanism: CountMechanism, random: NoiseSource, *, users: int
) -> Quality:
    """As `quality`, of sums that `mechanism` noises, the number of users among them.

    Args:
        rank: float64 (n,). Of each user's held-out item.
        candidates: int64 (n,). Items that it was ranked among.
        users: The platform's public number; how many of them were evaluated is a fact about rows, and stays here.
    """
    gain, hit, auc = per_user(rank, candidates)
    # One user gives (1, ndcg, hr, auc) / 2, of norm at most 1; the divisor is noised with the sums.
    contributions = np.stack([np.ones_like(gain), gain, hit, auc], 1) / math.sqrt(1 + _METRICS)
    noised = mechanism.privatise(contributions, random)
    count = max(float(noised[0]), 1.0)
    ndcg, hr, auc_mean = (float(np.clip(value / count, 0.0, 1.0)) for value in noised[1:])
    return Quality(ndcg=ndcg, hr=hr, auc=auc_mean, users=users)
