"""Which of the best items go into a list, one after the other: by score, unlike those before them, and not too many of a kind.

Maximal marginal relevance (Carbonell & Goldstein 1998, "The use of MMR, diversity-based reranking"): next comes the item with
the most (1 - d) x relevance - d x likeness to the nearest item that is in the list. Relevance is the score between 0, the last
of the pool, and 1, the first. Likeness is the cosine of the words of two items' titles and attributes, the rarer ones counting
more: it is the same for every model, so that their lists are made unlike by one measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.recommender.histories import Sparse, entries_of

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


def likeness_of(vectors: Sparse, items: Numbers) -> Floats:
    """Cosines of some items, float32 (m, m).

    Args:
        vectors: (items, words), rows of length 1 or 0.
    """
    row, word, weight = entries_of(vectors, items)
    _, column = np.unique(word, return_inverse=True)
    some = np.zeros((len(items), int(column.max(initial=-1)) + 1), np.float32)
    some[row, column] = weight
    found: Floats = some @ some.T
    return found


def likeness_rows(vectors: Sparse, items: Numbers) -> Callable[[int], Floats]:
    """Called with one's place among some items: its cosines with all of them, float32 (m,). Memory grows with m, not its square.

    Args:
        vectors: As `likeness_of`.
    """
    row, word, weight = entries_of(vectors, items)
    ends = np.searchsorted(row, np.arange(len(items) + 1))

    def of(place: int) -> Floats:
        mine = slice(ends[place], ends[place + 1])
        wanted = np.zeros(vectors.shape[1], np.float32)
        wanted[word[mine]] = weight[mine]
        return np.bincount(row, weight * wanted[word], minlength=len(items)).astype(np.float32)

    return of


def mean_unlikeness(likeness: Floats) -> float:
    """Intra-list distance: 1 - the mean cosine of two different items of a list; 0 for a list of one (Ziegler et al. 2005)."""
    count = len(likeness)
    if count < 2:
        return 0.0
    return float(1.0 - (likeness.sum() - np.trace(likeness)) / (count * (count - 1)))


def chosen_places(
    scores: Floats,
    top: int,
    *,
    diversity: float = 0.0,
    likeness: Callable[[int], Floats] | None = None,
    caps: Mapping[str, int] | None = None,
    values: Callable[[str, int], Sequence[str]] | None = None,
) -> list[int]:
    """Places of a pool in the order of the list; fewer than `top` where the caps leave fewer.

    Args:
        scores: float32 (pool,), the best first.
        diversity: d, from 0 (by score alone) to 1 (by unlikeness alone, after the first).
        likeness: Called with a place: its cosines with all of the pool, float32 (pool,); needed where `diversity` is above 0.
        caps: Attribute -> most items of one value.
        values: Called with an attribute and a place: the values that the item there has.
    """
    caps, relevance = caps or {}, _between_0_and_1(scores)
    left = np.ones(len(scores), np.bool_)
    nearest = np.zeros(len(scores), np.float32)
    taken: dict[str, Counter[str]] = {name: Counter() for name in caps}
    chosen: list[int] = []
    while len(chosen) < top and left.any():
        worth = (1.0 - diversity) * relevance - diversity * nearest if diversity and chosen else relevance
        place = int(np.argmax(np.where(left, worth, -np.inf)))
        left[place] = False
        kinds = {name: list(values(name, place)) if values else [] for name in caps}
        if any(taken[name][value] >= caps[name] for name, found in kinds.items() for value in found):
            continue
        for name, found in kinds.items():
            taken[name].update(found)
        chosen.append(place)
        if diversity and likeness is not None:
            nearest = np.maximum(nearest, likeness(place))
    return chosen


def _between_0_and_1(scores: Floats) -> Floats:
    if not len(scores):
        return scores
    span = float(scores.max() - scores.min())
    found: Floats = ((scores - scores.min()) / span if span > 0 else np.zeros_like(scores)).astype(np.float32)
    return found
