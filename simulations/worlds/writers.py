"""Who writes the texts of a generated world: draws words for an item's topics and style, and never the same title twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from numpy.random import Generator

from simulations.worlds.taste import AXES, TasteCatalogue
from simulations.worlds.vocabulary import MANNER, TOPICS, Topic

T = TypeVar("T")
_TRIES = 50


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What one item is about, in words.

    Args:
        topic: The main topic.
        second: The topic touched besides, if any.
        price, level, era: One adjective for the item's side of each axis.
    """

    topic: Topic
    second: Topic | None
    price: str
    level: str
    era: str


@dataclass(frozen=True)
class Writer:
    """Draws words, and remembers the titles given so far.

    Args:
        rng: Source of every draw.
    """

    rng: Generator
    titles: set[str] = field(default_factory=set)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.rng.integers(len(options)))]

    def manner(self, axis: str, side: int) -> str:
        """An adjective for that side of that axis."""
        return self.pick(MANNER[AXES.index(axis)][side])

    def subject(self, items: TasteCatalogue, item: int) -> Subject:
        """The words of one item's topics and style; drawn anew at each call."""
        first, second = items.topics(item)
        price, level, era = (self.manner(axis, int(side)) for axis, side in zip(AXES, items.style[item], strict=True))
        return Subject(
            topic=TOPICS[first],
            second=None if second is None else TOPICS[second],
            price=price,
            level=level,
            era=era,
        )

    def title(self, draft: Callable[[], str]) -> str:
        """A title that no earlier call gave; drafts are drawn until one is new, then numbered."""
        for _ in range(_TRIES):
            title = draft()
            if title not in self.titles:
                break
        else:
            number = 2
            while f"{title}, No. {number}" in self.titles:
                number += 1
            title = f"{title}, No. {number}"
        self.titles.add(title)
        return title
