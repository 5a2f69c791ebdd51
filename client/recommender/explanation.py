"""Why an item is recommended: the parts of its score, and the item of the history that adds most; exact, as scores are sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from client.recommender.evidence import ADAPTED, FRIENDS, POOLED, POPULARITY, SHARED_TASTE, TASTE, TEXT, VECTORS, WORDS
from client.recommender.platform_model import PREFERENCES, ScorePart

_DIGITS = 6
_BY_ITEM = {
    PREFERENCES: "you liked {}",
    WORDS: "its words are like those of {}",
    TEXT: "its text is like that of {}",
    ADAPTED: "its text is like that of {}",
    TASTE: "who likes texts like that of {} likes texts like its own",
    SHARED_TASTE: "who likes texts like that of {} likes texts like its own",
}
_ALONE = {
    PREFERENCES: "what you liked",
    TEXT: "its text is like what is known of you",
    SHARED_TASTE: "who likes texts like those of your history likes texts like its own",
    POPULARITY: "it is popular here",
    POOLED: "it is popular on the platforms together",
    FRIENDS: "your friends like it",
}
NOTHING = "nothing is known of you or of it: it is next in the catalogue"


def parts_of_item(parts: Sequence[ScorePart], item: int) -> dict[str, float]:
    """Part -> what it adds to the item's score, rounded; parts that add nothing are left out."""
    found = {part.name: round(float(part.scores[item]), _DIGITS) for part in parts}
    return {name: value for name, value in found.items() if value}


def total_of(parts: dict[str, float]) -> float:
    """The score: the sum of its parts."""
    return round(sum(parts.values()), _DIGITS)


def reason_for(parts: Sequence[ScorePart], item: int, history: Sequence[int], titles: Sequence[str]) -> str:
    """The part that adds most, in words; with the item of the history that adds most to it, if it is a sum over the history.

    Args:
        history: Items in the order in which the parts have them.
        titles: Of all items.
    """
    best = max(parts, key=lambda part: float(part.scores[item]))
    if not best.scores[item] > 0:
        return NOTHING
    if best.by_item is None or not len(history):
        return _ALONE.get(best.name, best.name)
    most = int(np.argmax(best.by_item[:, item]))
    liked = titles[history[most]]
    if best.name in _BY_ITEM:
        return _BY_ITEM[best.name].format(liked)
    # A source of vectors has the name that the platform's people gave it: images, sounds.
    return f"its {best.name.removeprefix(VECTORS.format(''))} are like those of {liked}"
