"""One platform's share of a generated world: its people under its own ids, its catalogue, and every choice made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simulations.worlds import taste
from simulations.worlds.taste import People, Strengths, TasteCatalogue

START = 1_704_067_200
"""2024-01-01 00:00 UTC, in seconds since 1970: no history begins earlier."""

YEAR = 365 * 86_400
"""Seconds in which all histories lie."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a generated world is, and how sharp its tastes are.

    Args:
        users: Users per platform.
        items: Items per platform.
        common: Share of a platform's users who are on every platform.
        positives: Mean number of liked items per user.
        least, most: Bounds of that number.
    """

    users: int = 1000
    items: int = 300
    common: float = 0.2
    positives: float = 24.0
    least: int = 5
    most: int = 60
    strengths: Strengths = field(default_factory=Strengths)

    @property
    def shared_users(self) -> int:
        """Number of people who are on every platform."""
        return round(self.common * self.users)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One liked item.

    Args:
        user: User number on this platform.
        item: Item number.
        time: Seconds since 1970; strictly increasing within a user.
        delight: How well the item's style suits the person, from -1 to 1.
    """

    user: int
    item: int
    time: int
    delight: float


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The users of one platform, its items, and who liked what.

    Args:
        people: Position is the user number, which says nothing about who is on other platforms.
        items: Position is the item number.
        chosen: Per user, int64 (positives,), in order of time.
        strengths: What the choices were drawn with.
    """

    people: People
    items: TasteCatalogue
    chosen: tuple[NDArray[np.int64], ...]
    strengths: Strengths

    def choices(self, rng: Generator) -> Iterator[Choice]:
        """Every choice with its time, sorted by user and then by time."""
        for user, items in enumerate(self.chosen):
            times = np.sort(rng.choice(YEAR // 60, size=len(items), replace=False)) * 60 + START
            style = self.people.style[user]
            delight = self.items.style[items] @ style / np.abs(style).sum()
            for item, time, joy in zip(items, times, delight, strict=True):
                yield Choice(user=user, item=int(item), time=int(time), delight=float(joy))

    def unliked(self, rng: Generator, user: int, count: int) -> NDArray[np.int64]:
        """Up to `count` items that the user did not choose and that suit them less than the middle one does."""
        logits = self.appeal_now(user)
        poor = np.setdiff1d(np.flatnonzero(logits < np.median(logits)), self.chosen[user])
        return rng.choice(poor, size=min(count, len(poor)), replace=False)

    def appeal_now(self, user: int) -> NDArray[np.float64]:
        """float64 (items,): logits of the user's last choice, known items included."""
        person = self.people.take(np.array([user]))
        return taste.appeal(person, self.items, np.ones(1), strengths=self.strengths).ravel()


def any_time(rng: Generator) -> int:
    """A moment of the year, whole minutes, in seconds since 1970."""
    return START + 60 * int(rng.integers(YEAR // 60))


def population(rng: Generator, *, sizes: Sizes, platforms: int) -> tuple[People, ...]:
    """The people of each platform: first come, in one order, those who are on all of them; then everybody's own."""
    own = sizes.users - sizes.shared_users
    everyone = taste.people(rng, count=sizes.shared_users + platforms * own)
    shared = np.arange(sizes.shared_users)
    return tuple(
        everyone.take(np.concatenate([shared, sizes.shared_users + platform * own + np.arange(own)]))
        for platform in range(platforms)
    )


def gather(rng: Generator, *, people: People, sizes: Sizes) -> Crowd:
    """One platform: shuffles the people, makes a catalogue and lets everyone choose."""
    people = people.take(rng.permutation(len(people)))
    items = taste.taste_catalogue(rng, count=sizes.items)
    spread = sizes.positives - sizes.least
    counts = sizes.least + rng.gamma(shape=2.0, scale=spread / 2.0, size=len(people))
    most = min(sizes.most, sizes.items // 2)
    chosen = []
    for user, count in enumerate(np.clip(counts.round().astype(int), sizes.least, most)):
        logits = taste.appeal(people.take(np.array([user])), items, np.linspace(0.0, 1.0, count), strengths=sizes.strengths)
        chosen.append(taste.choose(rng, logits))
    return Crowd(people=people, items=items, chosen=tuple(chosen), strengths=sizes.strengths)
