"""A list of recommended items: which items it may hold, in which order, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from client.evaluation.score_calibration import Calibration
from client.recommender.evidence import NOBODY
from client.recommender.histories import Histories
from client.recommender.lists.diversity import chosen_places, likeness_rows
from client.recommender.lists.explanation import DIGITS, Explanation, explained
from client.recommender.lists.item_attributes import AttributeFilter
from client.recommender.lists.person import Person, with_twins
from client.recommender.platform_model import ScorePart
from shared.base.errors import InputError

if TYPE_CHECKING:
    from client.recommender.serving.kept_model import Shelf

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]

NAMED_HISTORY = 5
"""Items of the history that are named one by one."""
_POOL, _POOL_A_PLACE = 200, 10
"""Best items among which a list is chosen that is not by score alone: so many at least, and so many for each place."""
_GROUP = 64
"""Items of which the best is looked for first."""


class ScoresInParts(Protocol):
    """What recommends: `PlatformModel` and `GlobalModel`."""

    @property
    def calibration(self) -> Calibration | None:
        """From scores to probabilities; None where it was made without the platform's rows."""

    def parts(self, liked: Histories, *, user: int = NOBODY) -> list[ScorePart]:
        """The parts of the scores for one history."""


@dataclass(frozen=True, kw_only=True)
class ListRules:
    """What a list is to be like.

    Args:
        top: Most items.
        diversity: From 0, by score alone, to 1, each item as unlike the others as can be.
        caps: Attribute -> most items of one of its values.
        filters: What the items' attributes must be.
        seen: Whether items that the person has had may be in it.
    """

    top: int = 10
    diversity: float = 0.0
    caps: Mapping[str, int] = field(default_factory=dict)
    filters: Sequence[AttributeFilter] = ()
    seen: bool = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InputError(f"--top is {self.top}", do="ask for at least one item")
        if not 0.0 <= self.diversity <= 1.0:
            raise InputError(f"--diversity is {self.diversity}", do="name a number from 0 (by score alone) to 1")

    @property
    def by_score_alone(self) -> bool:
        """Whether the best items are the list."""
        return not self.diversity and not self.caps


@dataclass(frozen=True, kw_only=True)
class HistoryShare:
    """What one item of the person's own history adds to a score."""

    item: str
    title: str
    adds: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    The parts add up to the score exactly, in decimals; so do the items of the history, those that are not named, and what does
    not come from the history.

    Args:
        score: Only its order within one person's list means something.
        because: Continues "because", in words.
        parts: What adds how much.
        from_history: Items of the own history that carry most of it.
        further_history: What the items of the history that are not named add together.
        besides_history: What does not come from the history.
        attributes: What is known of the item.
        probability: That it is the next item that they like, among all that they have not met; calibrated on the platform's own
            users. None where the score was made without their rows, or where they are too few.
    """

    rank: int
    item: str
    title: str
    score: float
    because: str
    parts: Mapping[str, float]
    from_history: Sequence[HistoryShare]
    further_history: float
    besides_history: float
    attributes: Mapping[str, str]
    probability: float | None = None


def allowed_items(shelf: Shelf, person: Person, rules: ListRules) -> Mask:
    """Which items a list may hold, bool (items,).

    Raises:
        InputError: a filter speaks of an attribute that there is not.
    """
    allowed = shelf.described.matching(rules.filters) if rules.filters else np.ones(shelf.items, np.bool_)
    if not rules.seen:
        allowed[with_twins(shelf, person.met)] = False
    return allowed


def best_of(scores: Floats, allowed: Mask, most: int) -> Numbers:
    """The best of some items, best first; of equal scores the first in the catalogue comes first.

    Args:
        scores: float32 (items,).
        allowed: bool (items,).
    """
    listed, groups = allowed, len(scores) // _GROUP
    if groups > most:
        found = np.where(allowed, scores, np.float32(-np.inf))
        # As many groups as are asked for have an item at or above this edge; and all that have its score belong to it, of which
        # a partition would take any. Partitioning all items would take five times as long.
        best = found[: groups * _GROUP].reshape(_GROUP, groups).max(0)
        listed = allowed & (found >= np.partition(best, groups - most)[groups - most])
    items = np.flatnonzero(listed)
    return items[np.argsort(-scores[items], kind="stable")[:most]]


def listed_items(shelf: Shelf, person: Person, scores: Floats, rules: ListRules) -> Numbers:
    """The items of a list in its order.

    Args:
        scores: float32 (items,).

    Raises:
        InputError: a filter or a cap speaks of an attribute that there is not.
    """
    allowed = allowed_items(shelf, person, rules)
    if rules.by_score_alone:
        return best_of(scores, allowed, rules.top)
    for name in rules.caps:
        shelf.described.values_of(name, 0)
    size = max(_POOL, _POOL_A_PLACE * rules.top)
    while True:
        pool = best_of(scores, allowed, size)
        values = {name: [shelf.described.values_of(name, int(item)) for item in pool] for name in rules.caps}
        places = chosen_places(
            scores[pool],
            rules.top,
            diversity=rules.diversity,
            likeness=likeness_rows(shelf.words, pool) if rules.diversity else None,
            caps=rules.caps,
            values=lambda name, place, values=values: values[name][place],  # type: ignore[misc]
        )
        if len(places) >= rules.top or len(pool) < size:
            return pool[places]
        # The caps left too few of the pool.
        size *= 4


def recommended(shelf: Shelf, model: ScoresInParts, person: Person, rules: ListRules) -> list[Recommendation]:
    """A person's list.

    Raises:
        InputError: a filter or a cap speaks of an attribute that there is not.
    """
    parts = model.parts(person.history(shelf.items), user=person.number)
    items = listed_items(shelf, person, total_scores(parts), rules)
    return described_list(shelf, parts, person, items, calibration=model.calibration)


def total_scores(parts: Sequence[ScorePart], items: Numbers | None = None) -> Floats:
    """The sum of the parts, float32 (items,).

    Args:
        items: int64. Only of these; by default of all.
    """
    of: Numbers | slice = slice(None) if items is None else items
    total = parts[0].scores[of].copy()
    for part in parts[1:]:
        total += part.scores[of]
    return total


def described_list(
    shelf: Shelf,
    parts: Sequence[ScorePart],
    person: Person,
    items: Numbers,
    *,
    calibration: Calibration | None = None,
    named: int = NAMED_HISTORY,
) -> list[Recommendation]:
    """Items in their order with the reasons for each.

    Args:
        parts: Of the scores for this person.
        items: int64 (m,).
        calibration: From the scores to probabilities, if there is one.
        named: Items of the history that are named one by one.
    """
    # As the parts have them (`Histories.recent`).
    order = sorted(set(person.liked.tolist()))
    found = explained(parts, items, order, shelf.item_titles, named=named)
    listed = [
        _described(shelf, rank, item, why) for rank, (item, why) in enumerate(zip(items.tolist(), found, strict=True), start=1)
    ]
    if calibration is None:
        return listed
    likely = calibration.probabilities(total_scores(parts, items))
    return [replace(one, probability=float(f"{chance:.{DIGITS}g}")) for one, chance in zip(listed, likely, strict=True)]


def _described(shelf: Shelf, rank: int, item: int, why: Explanation) -> Recommendation:
    shares = [
        HistoryShare(item=shelf.item_ids[one.item], title=shelf.item_titles[one.item], adds=one.adds) for one in why.history
    ]
    return Recommendation(
        rank=rank,
        item=shelf.item_ids[item],
        title=shelf.item_titles[item],
        score=why.score,
        because=why.because,
        parts=why.parts,
        from_history=shares,
        further_history=why.further,
        besides_history=why.besides,
        attributes=shelf.described.of_item(item),
    )
