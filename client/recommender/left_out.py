"""How well a platform's own users are predicted by a model that was fitted without them.

A point is one of a user's last items, to be ranked from the items before it by a model without any row of that user. Many points
of few users tell settings apart that one held-out item a user would not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.recommender.histories import Histories

LAST = 10
"""Items of a user that are points, at most."""
MOST, MOST_SCORES = 2000, 20_000_000
"""Points, and scores of theirs, at most; of more points, a part by chance."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Points.

    Args:
        user: int64 (points,).
        place: int64 (points,). Place in the user's history of the item to be predicted; items before it are known.
        target: int64 (points,). That item.
    """

    user: NDArray[np.int64]
    place: NDArray[np.int64]
    target: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user)

    def part(self, some: slice) -> LeftOut:
        """Some of the points."""
        return LeftOut(user=self.user[some], place=self.place[some], target=self.target[some])


def left_out(histories: Histories, *, seed: int) -> LeftOut:
    """The last items of every user but the first, as points."""
    lengths = histories.liked.lengths()
    taken = np.clip(lengths - 1, 0, LAST)
    user = np.repeat(np.arange(histories.users), taken)
    place = np.repeat(lengths - taken, taken) + np.arange(len(user)) - np.repeat(np.cumsum(taken) - taken, taken)
    most = min(MOST, max(1, MOST_SCORES // histories.items))
    if len(user) > most:
        kept = np.sort(np.random.default_rng(seed).choice(len(user), most, replace=False))
        user, place = user[kept], place[kept]
    return LeftOut(user=user, place=place, target=histories.liked.values[histories.liked.offsets[user] + place].astype(np.int64))


def ranks_of(scores: NDArray[np.float32], points: LeftOut, known: Ragged, *, liked: Ragged) -> NDArray[np.float64]:
    """Rank of each point's item among all that its user has not met by then, float64 (points,); ties count half.

    Args:
        scores: (points, items).
        known: Items that each user has met.
        liked: Items that each user has liked, oldest first; what came after the point is a candidate like any other.
    """
    own = scores[np.arange(len(points)), points.target][:, None]
    better, equal = scores > own, scores == own
    row, _, item = known.entries(points.user)
    met = np.zeros(scores.shape, bool)
    met[row, item] = True
    row, place, item = liked.entries(points.user)
    later = place >= points.place[row]
    met[row[later], item[later]] = False
    rank: NDArray[np.float64] = 1.0 + (better & ~met).sum(1) + ((equal & ~met).sum(1) - 1) / 2
    return rank


def mean_gain(rank: NDArray[np.float64]) -> float:
    """Mean of 1 / log2(rank + 1): as NDCG@10, but without a cut, so that it varies less from point to point."""
    return float((1.0 / np.log2(rank + 1.0)).mean()) if len(rank) else 0.0
