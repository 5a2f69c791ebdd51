"""The hidden tastes of a generated world: what people love, what items are, and who chooses what.

Nothing here is written to a file: a platform sees only the choices. Four things drive a choice.
A person's two loved topics, which drift from the first to the second and draw in the topics that
`AFFINITY` ties to them; a style (three two-sided axes); in shops the look of a thing, which no text says
and pictures show; and the item's Zipf popularity. `AFFINITY`
and the meaning of the axes are the same on every platform and are not similarities of the texts,
so they must be learned, and what one platform learns helps the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simulations.worlds.vocabulary import TOPICS

AXES = ("price", "level", "era")
"""Each axis has a side -1 (budget, beginner, classic) and a side +1 (premium, expert, modern)."""

LOOKS = 4
"""Directions in which looks differ: colours and shapes, say."""

# Each topic has one strong and one weak companion, chosen to be far apart in meaning.
_STRONG = (
    ("cooking", "jazz"),
    ("gardening", "chess"),
    ("space", "knitting"),
    ("football", "painting"),
    ("sailing", "photography"),
    ("cycling", "dog training"),
)
_WEAK = (
    ("cooking", "football"),
    ("gardening", "jazz"),
    ("space", "cycling"),
    ("chess", "sailing"),
    ("dog training", "painting"),
    ("knitting", "photography"),
)


def _affinity() -> NDArray[np.float64]:
    number = {topic.name: index for index, topic in enumerate(TOPICS)}
    matrix = np.zeros((len(TOPICS), len(TOPICS)))
    for pairs, strength in ((_STRONG, 1.0), (_WEAK, 0.4)):
        for one, other in pairs:
            matrix[number[one], number[other]] = matrix[number[other], number[one]] = strength
    return matrix


AFFINITY = _affinity()
"""(topics, topics), symmetric, zero diagonal: how far love of one topic becomes love of another."""


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """How much each part counts in the logit of a choice.

    Args:
        topic: Logit of an item wholly of the topic that is loved at that moment.
        style: Logit per axis on which the item has the side that the person prefers; its negative on the other side.
        look: Logit of an item whose look is wholly the one that the person prefers.
        popularity: Zipf exponent.
        companion: Share of `AFFINITY` that is felt at the start of a history; all of it is felt at the end.
        ageing: Loss of logit per day since an item appeared, where items appear day by day.
    """

    topic: float = 4.5
    style: float = 1.2
    look: float = 0.0
    popularity: float = 0.8
    companion: float = 0.2
    ageing: float = 1.5


@dataclass(frozen=True, kw_only=True)
class People:
    """Persons of the world.

    Args:
        loves: int64 (people, 2). Topic loved first, and topic loved last.
        style: float64 (people, axes). Sign: preferred side; size (0.6 to 1.4): how much it matters.
        look: float64 (people, looks), of length 1. The look that each prefers.
    """

    loves: NDArray[np.int64]
    style: NDArray[np.float64]
    look: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.loves)

    def take(self, numbers: NDArray[np.int64]) -> People:
        """The persons with these numbers, in this order."""
        return People(loves=self.loves[numbers], style=self.style[numbers], look=self.look[numbers])


@dataclass(frozen=True, kw_only=True)
class TasteCatalogue:
    """Items of one platform.

    Args:
        mix: float64 (items, topics), rows sum to 1. Share of each topic in the item.
        style: int64 (items, axes), -1 or +1. Side of each axis.
        look: float64 (items, looks), of length 1.
        popularity: float64 (items,). Log of the Zipf weight, greatest 0.
    """

    mix: NDArray[np.float64]
    style: NDArray[np.int64]
    look: NDArray[np.float64]
    popularity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mix)

    def pick(self, numbers: NDArray[np.int64]) -> TasteCatalogue:
        """The items with these numbers, in this order."""
        return TasteCatalogue(
            mix=self.mix[numbers], style=self.style[numbers], look=self.look[numbers], popularity=self.popularity[numbers]
        )

    def topics(self, item: int) -> tuple[int, int | None]:
        """The main topic of an item, and the second one if it has one."""
        first, second = np.argsort(-self.mix[item], kind="stable")[:2]
        return int(first), int(second) if self.mix[item, second] > 0 else None


def people(rng: Generator, *, count: int) -> People:
    """`count` persons, each with two different loves and a style."""
    first = rng.integers(len(TOPICS), size=count)
    second = (first + rng.integers(1, len(TOPICS), size=count)) % len(TOPICS)
    style = rng.choice([-1.0, 1.0], size=(count, len(AXES))) * rng.uniform(0.6, 1.4, size=(count, len(AXES)))
    return People(loves=np.stack([first, second], axis=1), style=style, look=_looks(rng, count))


def taste_catalogue(rng: Generator, *, count: int) -> TasteCatalogue:
    """`count` items: equally many per topic, sides of the axes at random, popularity by a random rank."""
    main = rng.permutation(np.arange(count) % len(TOPICS))
    second = (main + rng.integers(1, len(TOPICS), size=count)) % len(TOPICS)
    share = np.where(rng.random(count) < 0.5, 1.0, 0.8)  # half of the items touch a second topic
    mix = np.zeros((count, len(TOPICS)))
    mix[np.arange(count), second] = 1.0 - share
    mix[np.arange(count), main] = share
    rank = rng.permutation(count) + 1.0
    return TasteCatalogue(
        mix=mix,
        style=rng.choice(np.array([-1, 1]), size=(count, len(AXES))),
        look=_looks(rng, count),
        popularity=-np.log(rank),
    )


def _looks(rng: Generator, count: int) -> NDArray[np.float64]:
    # By a generator of their own, so that worlds in which looks do not count are what they would be without.
    drawn = rng.spawn(1)[0].normal(size=(count, LOOKS))
    unit: NDArray[np.float64] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


def appeal(
    person: People,
    items: TasteCatalogue,
    moments: NDArray[np.float64],
    *,
    strengths: Strengths,
) -> NDArray[np.float64]:
    """Logits of what one person would choose at each moment of their history.

    Args:
        person: Exactly one person.
        moments: (moments,) from 0, the start of the history, to 1, its end.

    Returns:
        float64 (moments, items).
    """
    first, last = np.eye(len(TOPICS))[person.loves[0]]
    late = moments[:, None]
    love = (1.0 - late) * first + late * last
    felt = strengths.companion + (1.0 - strengths.companion) * late
    taste = love + felt * (love @ AFFINITY)
    logits = strengths.topic * taste @ items.mix.T
    liking = strengths.style * (items.style @ person.style[0]) + strengths.look * (items.look @ person.look[0])
    return np.asarray(logits + liking + strengths.popularity * items.popularity)


def freshness(published: NDArray[np.int64], times: NDArray[np.int64], *, strengths: Strengths) -> NDArray[np.float64]:
    """What the age of items adds to the logits at each moment, float64 (moments, items); -inf before an item appears.

    Args:
        published: int64 (items,), seconds since 1970.
        times: int64 (moments,), seconds since 1970.
    """
    days = (times[:, None] - published) / 86_400
    return np.where(days < 0, -np.inf, -strengths.ageing * days)


def choose(rng: Generator, logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """One item per moment, none twice, each drawn from the softmax over the items not chosen yet.

    Drawn by the Gumbel trick: the greatest of logit + Gumbel noise is a draw from the softmax.

    Args:
        logits: (moments, items), with at most as many moments as items.

    Returns:
        int64 (moments,).
    """
    noisy = logits + rng.gumbel(size=logits.shape)
    chosen = np.empty(len(logits), dtype=np.int64)
    for moment in range(len(logits)):
        chosen[moment] = noisy[moment].argmax()
        noisy[:, chosen[moment]] = -np.inf
    return chosen
