"""The popularity prior: how often each item was liked, released with noise because it enters every user's loss.

The noise of one release is as large as the counts of most items, and where the users are few, as large as those of all. So the
counts are not taken at face value: what is known of an item's popularity, given its noised count, is inferred from the noised
counts of all items together. That comes after the noise, and costs no privacy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Ragged, Split, user_generator
from client.privacy.bounded_sum import BoundedSum, of_choices
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import NoiseSource
from client.sources.tables import Tables
from shared.base.settings import Settings
from shared.privacy.releases import ReleaseKind
from shared.secagg.shared_catalogues import BOUND

_LEAST = 0.5 / np.sqrt(BOUND)
"""Popularity of an item that nobody liked: half a like."""
_GRID = 64
_STEPS = 200
_PER_NOISE = 16
"""Noised counts are looked at on a grid of so many points per standard deviation: that moves none by more than a 32nd of it."""


def bounded_counts(split: Split, tables: Tables, *, seed: int, only: NDArray[np.int64] | None = None) -> BoundedSum:
    """Counts of training items in which every user has L2 norm at most 1, float64 (items,).

    A user gives 1 / sqrt(BOUND) to each of at most BOUND distinct items, chosen among more by that user's own generator.

    Args:
        only: int64 (users counted,). Numbers of the users that are counted; by default all.
    """
    chosen = (
        _chosen(split.train, int(user), tables.user_ids[user], seed) for user in (range(split.users) if only is None else only)
    )
    return of_choices(chosen, width=tables.items, most=BOUND)


def _chosen(train: Ragged, user: int, user_id: str, seed: int) -> NDArray[np.int32]:
    items = np.unique(train[user])
    return items if len(items) <= BOUND else user_generator(user_id, seed, "popularity").choice(items, BOUND, replace=False)


def count_mechanism(settings: Settings, *, items: int, private: bool) -> CountMechanism:
    """How a platform's popularities are noised."""
    multiplier = settings.privacy.prior_noise_multiplier if private else 0.0
    return CountMechanism(kind=ReleaseKind.POPULARITY, noise_multiplier=multiplier, dimension=items)


def release_prior(counts: BoundedSum, mechanism: CountMechanism, random: NoiseSource) -> NDArray[np.float32]:
    """Log of each item's share of popularity from noised counts, float32 (items,), natural logarithm."""
    noise = mechanism.point.noise if mechanism.private else 0.0
    return log_popularity(mechanism.privatise(counts, random), noise)


def log_popularity(noised: NDArray[np.float64], noise: float) -> NDArray[np.float32]:
    """Log of each item's share of popularity, float32 (items,), natural logarithm; the shares sum to 1.

    The expected logarithm of an item's count given its noised count. The distribution of the counts is the one under which the
    noised ones are most likely, of all distributions on a geometric grid (Kiefer & Wolfowitz 1956; by expectation-
    maximisation). What the noise drowned is thereby neither forbidden nor favoured: it gets what such items have on average.

    Args:
        noised: float64 (items,), finite. Counts with independent Gaussian noise.
        noise: Standard deviation of that noise; 0: the counts are exact.

    Three popular items among many that nobody knows, whose noise alone spans some 6:

    >>> random = np.random.default_rng(0)
    >>> counts = np.array([40.0, 20.0, 10.0] + [0.0] * 1000)
    >>> shares = np.exp(log_popularity(counts + random.normal(size=counts.size), 1.0))
    >>> (shares[:4] / shares[1]).round(1), (shares[3:].max() < shares[2] / 10)
    (array([2.1, 1. , 0.6, 0. ], dtype=float32), np.True_)
    """
    if noise == 0:
        logs = np.log(np.maximum(noised, _LEAST))
    else:
        values, which, times = np.unique(np.rint(noised * _PER_NOISE / noise), return_inverse=True, return_counts=True)
        grid = np.geomspace(_LEAST, max(noised.max(), 2 * _LEAST), _GRID)
        logs = _posterior_mean_log(values / _PER_NOISE, times, grid, noise)[which]
    shares: NDArray[np.float32] = (logs - np.logaddexp.reduce(logs)).astype(np.float32)
    return shares


def _posterior_mean_log(
    values: NDArray[np.float64], times: NDArray[np.int64], grid: NDArray[np.float64], noise: float
) -> NDArray[np.float64]:
    """E[log count | noised count] for noised counts in units of the noise, each seen so many times."""
    exponents = -0.5 * (values[:, None] - grid / noise) ** 2
    # Each row by its greatest: a common factor of a row cancels, and would underflow.
    likelihood = np.exp(exponents - exponents.max(1, keepdims=True))
    weights = np.full(len(grid), 1 / len(grid))
    for _ in range(_STEPS):
        parts = likelihood * weights
        weights = times / parts.sum(1) @ parts / times.sum()
    posterior = likelihood * weights
    mean: NDArray[np.float64] = posterior @ np.log(grid) / posterior.sum(1)
    return mean
