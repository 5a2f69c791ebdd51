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
        history: Items of the history that are named and what they add, the largest first; those that add nothing are left out.
        further: What those add together that are not named.
        besides: What does not come from the history: popularity, friends, a profile.
        because: Continues "because"; one sentence.
    """

    score: float
    parts: Mapping[str, float]
    history: Sequence[Carried] = field(repr=False)
    further: float
    besides: float
    because: str


def explained(
    parts: Sequence[ScorePart],
    items: Numbers,
    history: Sequence[int],
    titles: Sequence[str],
    *,
    named: int | None = None,
    digits: int = DIGITS,
) -> list[Explanation]:
    """The explanation of each of some items' scores.

    Args:
        items: int64 (m,).
        history: Items in the order in which the parts have them.
        titles: Of all items.
        named: Items of the history that are named at most; None: all.
    """
    adds = np.stack([part.scores[items].astype(np.float64) for part in parts])
    carried = np.zeros((len(history), len(items)))
    for row, part in enumerate(parts):
        carried += _shares(part, items, len(history), adds[row])
    scores = [round(score, digits) for score in adds.sum(0).tolist()]
    rounded = apportioned(adds, scores, digits)
    accounts = apportioned(np.vstack([carried, adds.sum(0) - carried.sum(0)]), scores, digits)
    largest_first = np.argsort(-accounts[:-1], axis=0, kind="stable")
    found = []
    for place, score in enumerate(scores):
        order, shares = largest_first[:, place].tolist(), accounts[:, place].tolist()
        carrying = [at for at in order if shares[at]]
        mine = [Carried(item=history[at], adds=shares[at]) for at in carrying[:named]]
        found.append(
            Explanation(
                score=score,
                parts={part.name: value for part, value in zip(parts, rounded[:, place].tolist(), strict=True) if value},
                history=mine,
                further=round(sum(shares[at] for at in carrying[len(mine) :]), digits),
                besides=shares[-1],
                because=_because(parts, adds[:, place].tolist(), mine, sum(shares[at] for at in carrying), titles),
            )
        )
    return found


def apportioned(values: Floats64, totals: Sequence[float], digits: int) -> Floats64:
    """The values of each column in so many decimals, so that in decimals they add up to its total exactly, float64 (n, m).

    Each is rounded down, and the units that are missing go to those with the largest remainders (Hamilton's method). Values that
    add up to another total than this by more than rounding are not made to fit: that is a mistake.

    Args:
        values: float64 (n, m).
        totals: One for each column.

    Raises:
        ValueError: the values do not add up to the total.

    >>> apportioned(np.array([[0.14], [0.14], [0.12]]), [0.4], 1).ravel().tolist()
    [0.2, 0.1, 0.1]
    """
    unit = 10**digits
    scaled = values * unit
    whole = np.floor(scaled)
    missing = np.array([round(total * unit) for total in totals]) - whole.sum(0)
    if wrong := missing[(missing < 0) | (missing > len(values))].tolist():
        raise ValueError(f"{len(values)} values are {wrong[0]:g} units away from their total")
    rank = np.argsort(np.argsort(whole - scaled, axis=0, kind="stable"), axis=0, kind="stable")
    found: Floats64 = (whole + (rank < missing)) / unit
    return found


def _shares(part: ScorePart, items: Numbers, length: int, scores: Floats64) -> Floats64:
    """What each item of the history adds by one part, float64 (items of the history, m)."""
    if part.by_item is None or not length:
        return np.zeros((length, len(items)))
    adds = part.by_item(items).astype(np.float64)
    total = adds.sum(0)
    # A part that is cut off below 0 is less than the sum of what its items add, each cut off: they share it in proportion.
    cut = (adds >= 0).all(0) & (total > 0)
    return np.where(cut, adds * np.divide(scores, total, out=np.ones_like(total), where=cut), adds)


def _because(
    parts: Sequence[ScorePart], adds: Sequence[float], history: Sequence[Carried], carried: float, titles: Sequence[str]
) -> str:
    best = max(range(len(adds)), key=adds.__getitem__)
    if not adds[best] > 0:
        return NOTHING
    alone = max((row for row, part in enumerate(parts) if part.by_item is None), key=adds.__getitem__, default=None)
    if history and history[0].adds > 0 and (alone is None or carried >= adds[alone]):
        named = [_titled(titles[one.item]) for one in history[:2] if one.adds >= SECOND * history[0].adds]
        return f"you liked {' and '.join(named)}"
    return _ALONE.get(parts[best if alone is None else alone].name, parts[best].name)


def _titled(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1].rstrip() + "…"
