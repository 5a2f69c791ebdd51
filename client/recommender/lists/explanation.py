"""Why an item is recommended: the parts of its score, the items of the own history that carry it, and one sentence.

Scores are sums, so both accounts are exact: the parts add up to the score that is shown, and so do the items of the history with
what does not come from it. The sentence is short and positive and names the person's own items, which users of hybrid
recommenders prefer (Kouki et al. 2019, "Personalized explanations for hybrid recommender systems"; Tintarev & Masthoff 2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.recommender.evidence import FRIENDS, POOLED, POPULARITY, SHARED_TASTE, TEXT
from client.recommender.platform_model import PREFERENCES, ScorePart

Floats64 = NDArray[np.float64]
Numbers = NDArray[np.int64]

DIGITS = 6
SECOND = 0.5
"""An item of the history is named beside the first if it carries at least this part of what the first carries."""
_LONGEST_TITLE = 80
_ALONE = {
    PREFERENCES: "of what you liked",
    TEXT: "its text is like what is known of you",
    SHARED_TASTE: "who likes texts like those of your history likes texts like its own",
    POPULARITY: "it is popular here",
    POOLED: "it is popular on the platforms together",
    FRIENDS: "your friends like it",
}
NOTHING = "nothing is known of you or of it: it is next in the catalogue"


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What one item of the history adds to a score.

    Args:
        item: Its number.
    """

    item: int
    adds: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Two accounts of one score, in `digits` decimals; the numbers of each add up to it exactly.

    Args:
        parts: Part -> what it adds; parts that add nothing are left out.
        history: Items of the history and what they add, the largest first; those that add nothing are left out.
        besides: What does not come from the history: popularity, friends, a profile.
        because: Continues "because"; one sentence.
    """

    score: float
    parts: Mapping[str, float]
    history: Sequence[Carried] = field(repr=False)
    besides: float
    because: str


def explained(
    parts: Sequence[ScorePart], items: Numbers, history: Sequence[int], titles: Sequence[str], *, digits: int = DIGITS
) -> list[Explanation]:
    """The explanation of each of some items' scores.

    Args:
        items: int64 (m,).
        history: Items in the order in which the parts have them.
        titles: Of all items.
    """
    adds = np.stack([part.scores[items].astype(np.float64) for part in parts])
    shares = [_shares(part, items, len(history), adds[row]) for row, part in enumerate(parts)]
    carried = np.sum(shares, axis=0)
    found = []
    for place in range(len(items)):
        score = round(float(adds[:, place].sum()), digits)
        rounded = apportioned(adds[:, place], score, digits)
        accounts = apportioned(np.append(carried[:, place], adds[:, place].sum() - carried[:, place].sum()), score, digits)
        order = np.argsort([-one for one in accounts[:-1]], kind="stable")
        mine = [Carried(item=int(history[at]), adds=accounts[at]) for at in order if accounts[at]]
        found.append(
            Explanation(
                score=score,
                parts={part.name: value for part, value in zip(parts, rounded, strict=True) if value},
                history=mine,
                besides=accounts[-1],
                because=_because(parts, adds[:, place], mine, titles),
            )
        )
    return found


def apportioned(values: Floats64, total: float, digits: int) -> list[float]:
    """The values in so many decimals, so that in decimals they add up to the total exactly.

    Each is rounded down, and the units that are missing go to those with the largest remainders (Hamilton's method). Values that
    add up to another total than this by more than rounding are not made to fit: that is a mistake.

    Raises:
        ValueError: the values do not add up to the total.

    >>> apportioned(np.array([0.14, 0.14, 0.12]), 0.4, 1)
    [0.2, 0.1, 0.1]
    """
    unit = 10**digits
    scaled = np.asarray(values, np.float64) * unit
    whole = np.floor(scaled).astype(np.int64)
    missing = round(total * unit) - int(whole.sum())
    if not 0 <= missing <= len(whole):
        raise ValueError(f"{len(whole)} values are {missing} units away from their total")
    whole[np.argsort(-(scaled - np.floor(scaled)), kind="stable")[:missing]] += 1
    return [int(value) / unit for value in whole]


def _shares(part: ScorePart, items: Numbers, length: int, scores: Floats64) -> Floats64:
    """What each item of the history adds by one part, float64 (items of the history, m)."""
    if part.by_item is None or not length:
        return np.zeros((length, len(items)))
    adds = part.by_item(items).astype(np.float64)
    total = adds.sum(0)
    # A part that is cut off below 0 is less than the sum of what its items add, each cut off: they share it in proportion.
    cut = (adds >= 0).all(0) & (total > 0)
    return np.where(cut, adds * np.divide(scores, total, out=np.ones_like(total), where=cut), adds)


def _because(parts: Sequence[ScorePart], adds: Floats64, history: Sequence[Carried], titles: Sequence[str]) -> str:
    best = int(np.argmax(adds))
    if not adds[best] > 0:
        return NOTHING
    alone = max((row for row, part in enumerate(parts) if part.by_item is None), key=lambda row: float(adds[row]), default=None)
    if history and history[0].adds > 0 and (alone is None or sum(one.adds for one in history) >= adds[alone]):
        named = [_titled(titles[one.item]) for one in history[:2] if one.adds >= SECOND * history[0].adds]
        return f"you liked {' and '.join(named)}"
    return _ALONE.get(parts[best if alone is None else alone].name, parts[best].name)


def _titled(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1].rstrip() + "…"
