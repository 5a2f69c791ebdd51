"""Ranking quality that leaves a platform: sums over users under noise, and their quotient."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from client.privacy.bounded_sum import BoundedSum, of_contributions
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import NoiseSource
from shared.protocol.quality import METRICS, WIDTH, Quality, per_user_metrics


def metric_sums(rank: NDArray[np.float64], candidates: NDArray[np.int64]) -> BoundedSum:
    """Sums over users of (1, every metric) / sqrt(1 + metrics), each user's of norm at most 1.

    Whether a user is among them follows from that user's own rows and from the public catalogue (`client/examples/split.py`): of
    whom nothing is held out contributes nothing. So one user more or less changes one contribution.

    Args:
        rank: float64 (n,). Of each user's held-out item.
        candidates: int64 (n,). Items that it was ranked among.
    """
    metrics = per_user_metrics(rank, candidates)
    return of_contributions(np.concatenate([np.ones((len(rank), 1)), metrics], axis=1) / math.sqrt(WIDTH))


def noised_quality(sums: BoundedSum, mechanism: CountMechanism, random: NoiseSource) -> Quality:
    """Means of the metrics, from sums that `mechanism` noises, the number of users among them.

    Args:
        sums: `metric_sums`.
    """
    noised = mechanism.privatise(sums, random)
    # The divisor is noised with the sums; below one user nothing can be said.
    count = max(float(noised[0]), 1.0 / math.sqrt(WIDTH))
    return Quality(dict(zip(METRICS, np.clip(noised[1:] / count, 0.0, 1.0).tolist(), strict=True)))
