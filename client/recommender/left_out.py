"""How well a platform's own users are predicted by a model that was fitted without them.

A point is one of a user's last items, to be ranked from the items before it by a model without any row of that user. Many points
of few users tell settings apart that one held-out item a user would not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.recommender.histories import Histories, Sparse
from client.recommender.item_ridge import ItemRidge

LAST = 10
"""Items of a user that are points, at most."""
MOST, MOST_SCORES = 2000, 60_000_000
"""Points, and scores of theirs, at most; of more points, a part by chance."""
SURELY = 1.28
"""Standard errors by which what was chosen among others has to be better."""
_AT_ONCE = 64
"""Points at once: a block of their scores stays in a processor's cache."""


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
    ends = np.cumsum(np.clip(lengths - 1, 0, LAST))
    count = int(ends[-1]) if len(ends) else 0
    most = min(MOST, max(1, MOST_SCORES // histories.items))
    # Numbered user by user: of a million users' points only those that are chosen are made.
    number = np.sort(np.random.default_rng(seed).choice(count, most, replace=False)) if count > most else np.arange(count)
    user = np.searchsorted(ends, number, side="right")
    place = lengths[user] - (ends[user] - number)
    return LeftOut(user=user, place=place, target=histories.liked.values[histories.liked.offsets[user] + place].astype(np.int64))


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
    return _ranks(scores, targets)


def _ranks(scores: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same of scores that are -inf where the item was met."""
    ranks = np.zeros(len(targets))
    for begin in range(0, len(targets), _AT_ONCE):
        block, wanted = scores[begin : begin + _AT_ONCE], targets[begin : begin + _AT_ONCE]
        own = block[np.arange(len(wanted)), wanted][:, None]
        ranks[begin : begin + _AT_ONCE] = 0.5 + _counts(block > own) + _counts(block == own) / 2
    return ranks


def _counts(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How many of each row; a row at a time, which numpy counts without widening."""
    return np.array([np.count_nonzero(row) for row in mask], np.float64)


def _ranks_of_active(
    scores: NDArray[np.float32], place: NDArray[np.int64], met: NDArray[np.bool_], others: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ranks among active items and others that score 0.

    Args:
        scores: (points, active items).
        place: int64 (points,). Of the target among the active items, -1 where it is none of these.
        others: float64 (points,). How many of them were not met.
    """
    np.copyto(scores, -np.inf, where=met)
    own = np.where(place >= 0, scores[np.arange(len(place)), place], np.float32(0.0))
    better = _counts(scores > own[:, None]) + others * (own < 0)
    equal = _counts(scores == own[:, None]) + others * (own == 0)
    ranks: NDArray[np.float64] = 0.5 + better + equal / 2
    return ranks


class Validation:
    """A platform's points, ready to be ranked by many models.

    Args:
        known: Items that each user has met; they are not ranked.
        seed: Of the choice among more points than are looked at.
    """

    def __init__(self, histories: Histories, known: Ragged, *, seed: int) -> None:
        self.histories, self.points, self.seed = histories, left_out(histories, seed=seed), seed
        self._met = met_before(self.points, known, liked=histories.liked, items=histories.items)
        self._times_met = _counts(self._met)
        self._rows = histories.rows()
        self._users, self._which = np.unique(self.points.user, return_inverse=True)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def users(self) -> NDArray[np.int64]:
        """Whose items the points are, int64 (users of points,), ascending."""
        return self._users

    def before(self, half_life: float | None, emphasis: float = 0.0) -> Sparse:
        """What is known at each point, (points, items)."""
        return self.histories.recent(self.points.user, half_life=half_life, emphasis=emphasis, lengths=self.points.place)

    def scores(self, model: ItemRidge, half_life: float | None, emphasis: float = 0.0) -> NDArray[np.float32]:
        """Scores at each point by the model without that user's row, float32 (points, items)."""
        before, own = self.before(half_life, emphasis), self._rows[self._users]
        scores = np.zeros((len(self), self.histories.items), np.float32)
        for part, users, which in self._blocks():
            scores[part] = model.scores_without(own[users], before[part], which)
        return scores

    def gains_by(self, model: ItemRidge, half_life: float | None, emphasis: float = 0.0) -> NDArray[np.float64]:
        """`gains` of `scores`, float64 (points,), without forming them: what is not active scores 0."""
        before, own = self.before(half_life, emphasis), self._rows[self._users]
        among = np.full(self.histories.items, -1)
        among[model.active] = np.arange(len(model.active))
        place, further = among[self.points.target], self.histories.items - len(model.active)
        ranks = np.zeros(len(self))
        for part, users, which in self._blocks():
            scores = model.active_without(own[users], before[part], which)
            met = self._met[part] if not further else np.take(self._met[part], model.active, axis=1)
            ranks[part] = _ranks_of_active(scores, place[part], met, further - self._times_met[part] + _counts(met))
        return gain(ranks)

    def gains_with(self, scores: NDArray[np.float32], adding: NDArray[np.float32], weight: np.float32) -> NDArray[np.float64]:
        """Gain at every point of `scores` + `weight` x `adding`, float64 (points,).

        Args:
            scores: float32 (points, items), -inf where the item was met; as `only_candidates` leaves them.
            adding: float32 (points, items).
        """
        ranks = np.zeros(len(self))
        for begin in range(0, len(self), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            total = weight * adding[part]
            total += scores[part]
            ranks[part] = _ranks(total, self.points.target[part])
        return gain(ranks)

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.int64]]]:
        """Some points, which of `_users` they are of, and for each point which of these."""
        for begin in range(0, len(self), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            yield part, *np.unique(self._which[part], return_inverse=True)

    def only_candidates(self, scores: NDArray[np.float32]) -> None:
        """Overwrite the scores of what was met, float32 (points, items), with -inf."""
        np.copyto(scores, -np.inf, where=self._met)

    def gains(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """`gain` of every point, float64 (points,); overwrites the scores of what was met."""
        return gain(ranks_among(scores, self.points.target, self._met))


def gain(rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / log2(rank + 1): as NDCG@10, but without a cut, so that its mean varies less."""
    gains: NDArray[np.float64] = 1.0 / np.log2(rank + 1.0)
    return gains


def surely_more(gains: NDArray[np.float64], than: NDArray[np.float64], users: NDArray[np.int64]) -> bool:
    """Whether gains are larger in the mean by more than 1.28 standard errors of that, points of one user counting as one draw.

    What is no better passes for better in one of ten cases (the 90 % point of the normal distribution). By one standard error it
    was one of six: of eight platforms that had nothing to gain, music at epsilon 2, two fused and lost 0.8 % of NDCG@10 (-1.6 to
    -0.1). By 1.64 that holds, too, and films dealt to 8 platforms gained 1.6 points less at epsilon 8.

    Args:
        gains, than: float64 (points,), of the same points.
        users: int64 (points,). Whose they are.

    >>> surely_more(np.array([0.5, 0.5, 0.5]), np.array([0.2, 0.3, 0.4]), np.arange(3))
    True
    >>> surely_more(np.array([0.9, 0.1, 0.1]), np.array([0.2, 0.3, 0.4]), np.arange(3))
    False
    """
    more = gains - than
    if not len(more):
        return False
    by_user = np.bincount(np.unique(users, return_inverse=True)[1], more - more.mean())
    return float(more.mean()) > SURELY * float(np.sqrt((by_user**2).sum())) / len(more)


def mean_gain(gains: NDArray[np.float64]) -> float:
    """0 where there are no points."""
    return float(gains.mean()) if len(gains) else 0.0
