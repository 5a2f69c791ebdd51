"""Which items are liked together: a platform's own rows, and preferences that others released, as one ridge regression.

What never leaves needs no noise: the platform's own rows count as they are. How much the released factors, the ridge and recency
weigh is chosen by what predicts the platform's own users best (`client/recommender/left_out.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.recommender.histories import Histories, Sparse
from client.recommender.item_ridge import ItemRidge
from client.recommender.left_out import LeftOut, left_out, mean_gain, ranks_of

Floats = NDArray[np.float32]

RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0)
HALF_LIVES = (None, 16.0, 8.0, 4.0)
SHARES = (1.0, 10.0, 100.0)
"""Weight of A'A of released factors, against 1 of the platform's own."""
_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class ItemPreferences:
    """Fitted preferences.

    Args:
        half_life: Items after which an item of a history counts half; None: never.
        share: Weight of the released factors; 0 without.
        gain: Mean gain over the left-out points.
    """

    model: ItemRidge = field(repr=False)
    half_life: float | None
    share: float
    gain: float

    def scores(self, histories: Histories, users: NDArray[np.int64]) -> Floats:
        """Scores of all items for some users, (n, items)."""
        return self.model.scores(histories.recent(users, half_life=self.half_life))


def fit_preferences(
    histories: Histories, known: Ragged, *, factors: Floats | None = None, seed: int = 0, shares: Sequence[float] = SHARES
) -> ItemPreferences:
    """Preferences of the setting that predicts this platform's users best.

    Args:
        known: Items that each user has met; they are not ranked.
        factors: (rank, items). Released by a federation: what counts is their A'A.
        shares: Weights of the factors to choose from.
    """
    points = left_out(histories, seed=seed)
    own = histories.rows()
    released = None if factors is None or not len(factors) else scipy.sparse.csr_matrix(factors)
    best: ItemPreferences | None = None
    half_lives = HALF_LIVES if histories.ordered else (None,)
    for share in (0.0, *shares) if released is not None else (0.0,):
        rows = own if not share else scipy.sparse.vstack([own, np.sqrt(share) * released], format="csr")
        for ridge in RIDGES:
            model = ItemRidge(rows, ridge=ridge)
            # Recency first, where it was best so far: the others are looked at only where this ridge does better.
            first = half_lives[len(half_lives) // 2] if best is None else best.half_life
            for half_life in (first, *(other for other in half_lives if other != first)):
                gain = mean_gain(_ranks(model, histories, known, points, own, half_life))
                if best is None or gain > best.gain:
                    best = ItemPreferences(model=model, half_life=half_life, share=share, gain=gain)
                elif half_life == first:
                    break
    assert best is not None
    return best


def _ranks(
    model: ItemRidge, histories: Histories, known: Ragged, points: LeftOut, own: Sparse, half_life: float | None
) -> NDArray[np.float64]:
    found = [np.zeros(0)]
    for part in _parts(points):
        users, which = np.unique(part.user, return_inverse=True)
        before = histories.recent(part.user, half_life=half_life, lengths=part.place)
        scores = model.scores_without(own[users], before, which)
        found.append(ranks_of(scores, part, known, liked=histories.liked))
    return np.concatenate(found)


def _parts(points: LeftOut) -> Iterator[LeftOut]:
    for begin in range(0, len(points), _AT_ONCE):
        yield points.part(slice(begin, begin + _AT_ONCE))
