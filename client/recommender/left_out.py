"""How well a platform's own users are predicted by a model that was fitted without them.

A point is one of a user's last items, to be ranked from the items before it by a model without any row of that user. Many points
of few users tell settings apart that one held-out item a user would not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.evaluation.ranking_metrics import exclusion, ranks
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
    user, place, item = histories.liked.entries(np.arange(histories.users))
    kept = np.flatnonzero(place >= np.maximum(1, histories.liked.lengths()[user] - LAST))
    most = min(MOST, max(1, MOST_SCORES // histories.items))
    if len(kept) > most:
        kept = np.sort(np.random.default_rng(seed).choice(kept, most, replace=False))
    return LeftOut(user=user[kept], place=place[kept], target=item[kept])


def ranks_of(scores: NDArray[np.float32], points: LeftOut, known: Ragged, *, liked: Ragged) -> NDArray[np.float64]:
    """Rank of each point's item among all that its user has not met by then, float64 (points,); ties count half.

    Args:
        scores: (points, items).
        known: Items that each user has met.
        liked: Items that each user has liked, oldest first; what came after the point is a candidate like any other.
    """
    met = exclusion(known, points.user, scores.shape[1])
    row, place, item = liked.entries(points.user)
    later = place >= points.place[row]
    met[torch.from_numpy(row[later]), torch.from_numpy(item[later])] = False
    return ranks(torch.from_numpy(scores), torch.from_numpy(points.target), met)[0].numpy()


def mean_gain(rank: NDArray[np.float64]) -> float:
    """Mean of 1 / log2(rank + 1): as NDCG@10, but without a cut, so that it varies less from point to point."""
    return float((1.0 / np.log2(rank + 1.0)).mean()) if len(rank) else 0.0
