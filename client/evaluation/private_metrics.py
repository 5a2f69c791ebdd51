"""Ranking quality that leaves a platform: sums over users under noise, and their quotient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from client.evaluation.ranking_metrics import Quality, per_user_metrics
from client.privacy.bounded_sum import BoundedSum, of_contributions
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import NoiseSource
from client.privacy.release_plan import WIDTH


def metric_sums(rank: NDArray[np.float64], candidates: NDArray[np.int64]) -> BoundedSum:
    """Sums over users of (1, NDCG@10, HR@10, AUC) / 2, each user's of norm at most 1.

    Args:
        rank: float64 (n,). Of each user's held-out item.
        candidates: int64 (n,). Items that it was ranked among.
    """
    gain, hit, auc = per_user_metrics(rank, candidates)
    return of_contributions(np.stack([np.ones_like(gain), gain, hit, auc], 1) / math.sqrt(WIDTH))


def noised_quality(sums: BoundedSum, mechanism: CountMechanism, random: NoiseSource, *, users: int) -> Quality:
    """Means of the metrics, from sums that `mechanism` noises, the number of users among them.

    Args:
        sums: `metric_sums`.
        users: The platform's public number; how many of them were evaluated is a fact about rows, and stays here.
    """
    noised = mechanism.privatise(sums, random)
    # The divisor is noised with the sums; below one user nothing can be said.
    count = max(float(noised[0]), 1.0 / math.sqrt(WIDTH))
    ndcg, hr, auc = (float(np.clip(value / count, 0.0, 1.0)) for value in noised[1:])
    return Quality(ndcg=ndcg, hr=hr, auc=auc, users=users)
