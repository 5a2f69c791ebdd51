"""What is made of the noised sums of what users like: which items count, and the factors that are published.

All of it comes after the noise, and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.preferences.denoising import MOST_FACTORS, preference_factors
from shared.preferences.item_index import Hashes, declared_items, places_of
from shared.preferences.packing import diagonal_of, working_matrix
from shared.preferences.popularity_axis import PopularityAxis, declared_direction, popularity_axis
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.sum_kind import SumKind, sum_size


@dataclass(frozen=True, kw_only=True)
class PreferenceQuestion:
    """Which sum is asked for.

    Args:
        items: Hashes of the items, uint64 (m,), ascending; none for a taste map.
        direction: Of their popularity, float32 (m,), for a sum of pairs; None for one of single items.
        directions: Of a taste map; 0 for a sum of items.
    """

    items: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    direction: NDArray[np.float32] | None = field(default=None, repr=False)
    directions: int = 0

    @property
    def of(self) -> SumKind:
        """What is summed."""
        if self.directions:
            return SumKind.TASTE
        return SumKind.LIKES if self.direction is None else SumKind.PREFERENCES

    @property
    def size(self) -> int:
        """Numbers of the sum."""
        return sum_size(self.directions or len(self.items), self.of)

    def fields(self) -> dict[str, Any]:
        """As fields of `shared.protocol.messages.Prefer`."""
        axis = b"" if self.direction is None else declared_direction(self.direction)
        return {"items": declared_items(self.items), "of": self.of, "axis": axis}


@dataclass(frozen=True, kw_only=True)
class ChosenItems:
    """Items whose preferences are summed, and the axis of their popularity."""

    items: Hashes = field(repr=False)
    axis: PopularityAxis


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


class ChoiceStore(Protocol):
    """Where a run keeps what it has chosen, so that a coordinator that comes back asks the same question."""

    def chosen(self) -> ChosenItems | None:
        """What was chosen; None before."""
        ...

    def choose(self, chosen: ChosenItems) -> None:
        """Remember it."""
        ...


def combined_preferences(
    shared: Hashes, *, most: int, ask: Callable[[PreferenceQuestion], PreferenceSum], store: ChoiceStore
) -> SharedPreferences:
    """Ask for the sums, and make of them what is published: popularity first, then what is liked together beside it.

    Args:
        shared: Items that platforms share.
        most: Items whose preferences are summed: the most popular ones.
        ask: Sums over platforms.
        store: Remembers what was chosen by the first sum, before the second is asked for.
    """
    chosen = store.chosen()
    if chosen is None:
        likes = ask(PreferenceQuestion(items=shared))
        items = most_popular(shared, likes.vector, most)
        counted = likes.vector[places_of(items, shared)]
        chosen = ChosenItems(items=items, axis=popularity_axis(counted, noise=likes.noise, users=likes.users))
        store.choose(chosen)
    items, axis = chosen.items, chosen.axis
    sums = ask(PreferenceQuestion(items=items, direction=axis.direction))
    matrix = working_matrix(sums.vector, len(items))
    beside = preference_factors(matrix, noise=sums.noise, most=MOST_FACTORS - 1)
    factors, popularity = axis.put_back(beside, diagonal_of(sums.vector, len(items)), users=sums.users)
    return SharedPreferences(
        items=items,
        factors=factors,
        popularity=popularity,
        noise=sums.noise * (1 - axis.share),
        users=sums.users,
        noised=sums.vector.astype(np.float32),
    )
