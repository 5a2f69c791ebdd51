"""The popularity prior: how often each item was liked, released with noise because it enters every user's loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.mechanism import CountMechanism
from client.noise import NoiseSource
from client.split import Ragged, Split, user_generator
from client.tables import Tables

BOUND = 20
"""Items that one user contributes at most."""


def bounded_counts(split: Split, tables: Tables, *, seed: int) -> NDArray[np.float64]:
    """Counts of training items in which every user has L2 norm at most 1, float64 (items,).

    A user gives 1 / sqrt(BOUND) to each of at most BOUND distinct items, his own choice among more.
    """
    chosen = [_chosen(split.train, user, tables.user_ids[user], seed) for user in range(split.users)]
    items = np.concatenate(chosen) if chosen else np.zeros(0, np.int32)
    counts: NDArray[np.float64] = np.bincount(items, minlength=tables.items) / np.sqrt(BOUND)
    return counts


def _chosen(train: Ragged, user: int, user_id: str, seed: int) -> NDArray[np.int32]:
    items = np.unique(train[user])
    return items if len(items) <= BOUND else user_generator(user_id, seed, "popularity").choice(items, BOUND, replace=False)


def release_prior(counts: NDArray[np.float64], mechanism: CountMechanism, random: NoiseSource) -> NDArray[np.float32]:
    """Log of the noised share of each item, float32 (items,), natural logarithm.

    The noised counts are floored at the noise's own size (at least one like), so that an item that the
    noise drowned is neither forbidden nor favoured; flooring comes after the noise and costs nothing.
    """
    noised = mechanism.noised(counts, random)
    floored = np.maximum(noised, max(mechanism.noise_multiplier, 0.5 / np.sqrt(BOUND)))
    prior: NDArray[np.float32] = np.log(floored / floored.sum()).astype(np.float32)
    return prior
