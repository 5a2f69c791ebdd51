"""What is made of the noised sums of what users like: which items count, and the factors that are published.

All of it comes after the noise, and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shared.preferences.denoising import preference_factors
from shared.preferences.item_index import Hashes
from shared.preferences.packing import diagonal_of, unpacked
from shared.preferences.shared_preferences import SharedPreferences

_DOUBLE = 2048
"""Items up to which factors are computed in float64; more take half the memory."""


@dataclass(frozen=True, kw_only=True)
class PreferenceSum:
    """A noised sum over platforms.

    Args:
        vector: float64 (n,).
        noise: Standard deviation of the noise in each number.
        users: Declared users of the platforms that are in it.
    """

    vector: NDArray[np.float64] = field(repr=False)
    noise: float
    users: int


def most_popular(items: Hashes, likes: NDArray[np.float64], most: int) -> Hashes:
    """The items with the largest counts, ascending; of equal ones those with the smaller hash.

    >>> most_popular(np.array([3, 5, 9], np.uint64), np.array([1.0, 7.0, 2.0]), 2).tolist()
    [5, 9]
    """
    best = np.sort(np.lexsort((items, -likes))[:most])
    chosen: Hashes = items[best]
    return chosen


def combined_preferences(
    shared: Hashes,
    *,
    most: int,
    ask: Callable[[Hashes, bool], PreferenceSum],
    chosen: Hashes | None,
    keep: Callable[[Hashes], None],
) -> SharedPreferences:
    """Ask for the sums, and make of them what is published.

    Args:
        shared: Items that platforms share.
        most: Items whose preferences are summed.
        ask: Sums over platforms: of some items, and whether of their pairs.
        chosen: Items that were chosen before, by a coordinator that comes back.
        keep: Remembers the choice, before it is asked about.
    """
    items = shared
    if chosen is not None:
        items = chosen
    elif len(shared) > most:
        items = most_popular(shared, ask(shared, False).vector, most)
        keep(items)
    sums = ask(items, True)
    matrix = unpacked(sums.vector, len(items), single=len(items) > _DOUBLE)
    return SharedPreferences(
        items=items,
        factors=preference_factors(matrix, noise=sums.noise),
        popularity=diagonal_of(sums.vector, len(items)).astype(np.float32),
        noise=sums.noise,
        users=sums.users,
    )
