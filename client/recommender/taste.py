"""Taste as a part of the score: whether texts like an item's are liked together with texts like those of somebody's history."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.privacy.taste_release import taste_of
from client.recommender.evidence import NOBODY, TASTE, ByItem, ScoredFor
from client.recommender.histories import Histories, Sparse
from shared.preferences.taste_directions import item_directions
from shared.preferences.taste_map import taste_view

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

OWN_DIRECTIONS = 64


@dataclass(frozen=True, kw_only=True)
class TasteOnItems:
    """A map on a platform's own items: the score of item j after item i is seen_i' A seen_j.

    Args:
        directions: float64 (items, d). f, of length 1.
        seen: float64 (items, d). The same through the view of `shared.preferences.taste_map.taste_view`.
        matrix: float64 (d, d). A.
    """

    directions: NDArray[np.float64] = field(repr=False)
    seen: NDArray[np.float64] = field(repr=False)
    matrix: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, directions: NDArray[np.float64], matrix: NDArray[np.float64]) -> TasteOnItems:
        """A map on the items of these directions."""
        return cls(directions=directions, seen=directions @ taste_view(matrix, directions), matrix=matrix)

    def scores(self, history: Sparse) -> Floats:
        """Of all items, float32 (n, items); any sign."""
        found: Floats = ((history @ self.seen) @ self.matrix @ self.seen.T).astype(np.float32)
        return found

    def by_item(self, history: Sparse, items: Numbers) -> Floats:
        """What each item of one history adds to some items, float32 (items of the history, m); any sign."""
        each = history.data[:, None] * self.seen[history.indices]
        found: Floats = (each @ self.matrix @ self.seen[items].T).astype(np.float32)
        return found

    def likeness(self, history: Sparse) -> Floats:
        """Cosines of directions, added up by the history's weights, float32 (n, items)."""
        found: Floats = ((history @ self.directions) @ self.directions.T).astype(np.float32)
        return found


class Taste:
    """The map as evidence; what goes against a taste speaks against nothing.

    Args:
        own: The users whose rows the matrix is made of, where it is the platform's own; None for a released one.
    """

    def __init__(self, taste: TasteOnItems, *, name: str, own: Histories | None = None) -> None:
        self.on_items, self._own, self.name = taste, own, name

    def scores(self, asked: ScoredFor) -> Floats:
        """As `client.recommender.evidence.Evidence`."""
        scores = self.on_items.scores(asked.history)
        if asked.without and self._own is not None:
            scores -= self._own_part(self._own, asked)
        return np.maximum(scores, np.float32(0.0), out=scores)

    def for_one(self, asked: ScoredFor) -> tuple[Floats, ByItem]:
        """As `client.recommender.evidence.Evidence`."""
        return self.scores(asked)[0], self.by_item(asked.history)

    def by_item(self, history: Sparse) -> ByItem:
        """What the items of one history add."""
        return lambda items: np.maximum(self.on_items.by_item(history, items), np.float32(0.0))

    def _own_part(self, own: Histories, asked: ScoredFor) -> Floats:
        """What each asked user's own row adds to their scores."""
        seen, before = self.on_items.seen, asked.history @ self.on_items.seen
        through = np.zeros_like(before)
        for user in np.unique(asked.users[asked.users != NOBODY]):
            rows = asked.users == user
            through[rows] = before[rows] @ taste_of(self.on_items.directions[np.unique(own.liked[int(user)])])
        part: Floats = (through @ seen.T).astype(np.float32)
        return part


def own_taste(histories: Histories, vectors: Floats) -> Taste:
    """The platform's own map: exact, and never to leave.

    Args:
        vectors: float32 (items, width). Of the items' texts, by a frozen backbone.
    """
    directions = item_directions(vectors, min(OWN_DIRECTIONS, vectors.shape[1]))
    matrix = np.zeros((directions.shape[1], directions.shape[1]))
    for user in range(histories.users):
        matrix += taste_of(directions[np.unique(histories.liked[user])])
    return Taste(TasteOnItems.of(directions, matrix), name=TASTE, own=histories)
