"""Which items are liked together: a platform's own rows, and preferences that others released, as one ridge regression.

What never leaves needs no noise: the platform's own rows count as they are. How much the released factors, the ridge and recency
weigh is chosen by what predicts the platform's own users best (`client/recommender/left_out.py`). The gain is a smooth function
of each of them, so they are climbed one grid step at a time instead of tried all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.recommender.histories import Histories, Sparse
from client.recommender.item_ridge import ItemRidge, spectrum_of
from client.recommender.left_out import Validation, mean_gain

Floats = NDArray[np.float32]

RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
_FIRST, _FIRST_OF_MANY, _MANY = 100.0, 1000.0, 20_000
"""Ridge that is tried first, and that of platforms of so many users: the more users, the more a ridge may be."""
HALF_LIVES = (None, 16.0, 8.0, 4.0)
EMPHASES = (0.5, 1.0)
"""Exponents of the weights of events and values in a history, beside 0, which is that they do not matter."""
SHARES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Weight of A'A of released factors, against 1 of the platform's own."""


@dataclass(frozen=True, kw_only=True)
class ItemPreferences:
    """Fitted preferences.

    Args:
        half_life: Items after which an item of a history counts half; None: never.
        share: Weight of the released factors; 0 without.
        gain: Mean gain over the left-out points.
        emphasis: Exponent of the weights of events and values; 0: they do not matter.
    """

    model: ItemRidge = field(repr=False)
    half_life: float | None
    share: float
    gain: float
    emphasis: float = 0.0

    def history(self, histories: Histories, users: NDArray[np.int64]) -> Sparse:
        """What of some users' histories counts how much, (n, items)."""
        return histories.recent(users, half_life=self.half_life, emphasis=self.emphasis)

    def scores(self, histories: Histories, users: NDArray[np.int64]) -> Floats:
        """Scores of all items for some users, (n, items)."""
        return self.model.scores(self.history(histories, users))


def fit_preferences(
    validation: Validation, released: Iterable[Floats] = (), *, own: ItemPreferences | None = None
) -> ItemPreferences:
    """The best of what own rows give alone and with each of the released factors.

    Args:
        released: (rank, items) each; what counts is their A'A.
        own: What own rows give alone, where that is known.
    """
    alone = own_preferences(validation) if own is None else own
    return max([alone, *(joint_preferences(validation, some, start=alone) for some in released)], key=lambda found: found.gain)


def own_preferences(validation: Validation) -> ItemPreferences:
    """The best that own rows alone give."""
    return _at_share(validation, None, 0.0, None)


def emphasised(validation: Validation, preferences: ItemPreferences) -> list[ItemPreferences]:
    """The same with each exponent of the weights in a history; none where all weights are alike."""
    if validation.histories.weight is None:
        return []
    model, half_life = preferences.model, preferences.half_life
    gains = [mean_gain(validation.gains_by(model, half_life, emphasis)) for emphasis in EMPHASES]
    return [replace(preferences, emphasis=emphasis, gain=gain) for emphasis, gain in zip(EMPHASES, gains, strict=True)]


def joint_preferences(validation: Validation, factors: Floats, *, start: ItemPreferences) -> ItemPreferences:
    """The best that own rows and released factors give together, with a share above 0.

    Args:
        factors: (rank, items).
        start: What own rows give alone: the search begins with its ridge and recency, and keeps its emphasis.
    """
    return _climb(lambda place: _at_share(validation, factors, SHARES[place], start), len(SHARES), len(SHARES) // 2)


def _at_share(validation: Validation, factors: Floats | None, share: float, start: ItemPreferences | None) -> ItemPreferences:
    rows = validation.histories.rows()
    if factors is not None and share:
        rows = scipy.sparse.vstack([rows, np.sqrt(share) * scipy.sparse.csr_matrix(factors)], format="csr")
    spectrum = spectrum_of(rows, apart=validation.users)
    first = _FIRST if validation.histories.users < _MANY else _FIRST_OF_MANY
    half_lives = HALF_LIVES if validation.histories.ordered else (None,)
    emphasis = 0.0 if start is None else start.emphasis
    last = len(half_lives) // 2 if start is None else half_lives.index(start.half_life)

    def at_ridge(place: int) -> ItemPreferences:
        nonlocal last
        model = ItemRidge(rows, ridge=RIDGES[place], spectrum=spectrum)

        def with_recency(place: int) -> ItemPreferences:
            gain = mean_gain(validation.gains_by(model, half_lives[place], emphasis))
            return ItemPreferences(model=model, half_life=half_lives[place], share=share, gain=gain, emphasis=emphasis)

        found = _climb(with_recency, len(half_lives), last)
        last = half_lives.index(found.half_life)
        return found

    return _climb(at_ridge, len(RIDGES), RIDGES.index(first if start is None else start.model.ridge))


def _climb(fit: Callable[[int], ItemPreferences], places: int, start: int) -> ItemPreferences:
    """The best of its neighbours on a grid of so many places, reached from a first one."""
    best = fit(start)
    for step in (1, -1):
        place, moved = start + step, False
        while 0 <= place < places:
            found = fit(place)
            if found.gain <= best.gain:
                break
            best, place, moved = found, place + step, True
        if moved:
            break
    return best
