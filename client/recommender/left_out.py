"""How well a platform's own users are predicted by a model that was fitted without them.

A point is one of a user's last items, to be ranked from the items before it by a model without any row of that user. Many points
of few users tell settings apart that one held-out item a user would not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.recommender.histories import Histories, Sparse
from client.recommender.item_ridge import ItemRidge

LAST = 10
"""Items of a user that are points, at most."""
MOST, MOST_SCORES = 2000, 20_000_000
"""Points, and scores of theirs, at most; of more points, a part by chance."""
_AT_ONCE = 256


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


def met_before(points: LeftOut, known: Ragged, *, liked: Ragged, items: int) -> NDArray[np.bool_]:
    """What each point's user has met by then, bool (points, items): no candidates.

    Args:
        known: Items that each user has met.
        liked: Items that each user has liked, oldest first; what came after the point is a candidate like any other.
    """
    met = np.zeros((len(points), items), np.bool_)
    row, _, item = known.entries(points.user)
    met[row, item] = True
    row, place, item = liked.entries(points.user)
    later = place >= points.place[row]
    met[row[later], item[later]] = False
    return met


def ranks_among(scores: NDArray[np.float32], targets: NDArray[np.int64], met: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rank of each point's item among all that its user has not met by then, float64 (points,); ties count half.

    Args:
        scores: (points, items), finite; overwritten where `met`.
        targets: int64 (points,). Never met.
        met: bool (points, items).
    """
    np.copyto(scores, -np.inf, where=met)
    own = scores[np.arange(len(targets)), targets][:, None]
    better, equal = np.count_nonzero(scores > own, axis=1), np.count_nonzero(scores == own, axis=1) - 1
    ranks: NDArray[np.float64] = 1.0 + better + equal / 2
    return ranks


class Validation:
    """A platform's points, ready to be ranked by many models.

    Args:
        known: Items that each user has met; they are not ranked.
        seed: Of the choice among more points than are looked at.
    """

    def __init__(self, histories: Histories, known: Ragged, *, seed: int) -> None:
        self.histories, self.points = histories, left_out(histories, seed=seed)
        self._met = met_before(self.points, known, liked=histories.liked, items=histories.items)
        self._rows = histories.rows()
        self._users, self._which = np.unique(self.points.user, return_inverse=True)

    def __len__(self) -> int:
        return len(self.points)

    def before(self, half_life: float | None) -> Sparse:
        """What is known at each point, (points, items)."""
        return self.histories.recent(self.points.user, half_life=half_life, lengths=self.points.place)

    def scores(self, model: ItemRidge, half_life: float | None) -> NDArray[np.float32]:
        """Scores at each point by the model without that user's row, float32 (points, items)."""
        before, own = self.before(half_life), self._rows[self._users]
        parts = [np.zeros((0, self.histories.items), np.float32)]
        for begin in range(0, len(self), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            users, which = np.unique(self._which[part], return_inverse=True)
            parts.append(model.scores_without(own[users], before[part], which))
        return np.concatenate(parts)

    def gains(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """`gain` of every point, float64 (points,); overwrites the scores of what was met."""
        return gain(ranks_among(scores, self.points.target, self._met))


def gain(rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / log2(rank + 1): as NDCG@10, but without a cut, so that its mean varies less."""
    gains: NDArray[np.float64] = 1.0 / np.log2(rank + 1.0)
    return gains


def mean_gain(gains: NDArray[np.float64]) -> float:
    """0 where there are no points."""
    return float(gains.mean()) if len(gains) else 0.0
