"""One platform's share of a generated world: its people under its own ids, its catalogue, and every choice made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from simulations.worlds import taste
from simulations.worlds.products import Product
from simulations.worlds.taste import People, Strengths, TasteCatalogue

START = 1_704_067_200
"""2024-01-01 00:00 UTC, in seconds since 1970: no history begins earlier."""

DAY = 86_400

YEAR = 365 * DAY
"""Seconds in which all histories lie."""

SEASON = 60
"""Days in which the histories lie where items appear day by day."""

MORNING = 6 * 3600
"""Seconds after midnight at which a day's items appear."""

STAY = (5, 26)
"""Least and, not included, greatest number of days between a reader's first and last visit."""

COMMON = 0.2
"""Share of a platform's users who are on every larger platform, too."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large one platform of a generated world is, and how sharp the tastes are.

    Args:
        users, items: How many.
        positives: Mean number of liked items per user.
        least, most: Bounds of that number.
        drift: Choices after which interest has moved from the first love to the last.
        shape: Of the gamma distribution that numbers of liked items follow: 1 makes many short histories and few long ones.
    """

    users: int = 400
    items: int = 300
    positives: float = 20.0
    least: int = 5
    most: int = 60
    drift: int = 20
    shape: float = 2.0
    strengths: Strengths = field(default_factory=Strengths)

    @property
    def common_users(self) -> int:
        """Number of people who are on every larger platform, too."""
        return round(COMMON * self.users)

    def scaled(self, scale: float) -> Sizes:
        """As many times the users and items."""
        return replace(self, users=round(self.users * scale), items=round(self.items * scale))

    def draw_lengths(self, rng: Generator, count: int) -> NDArray[np.int64]:
        """Numbers of liked items, int64 (count,)."""
        mean = self.positives - self.least
        lengths = self.least + rng.gamma(shape=self.shape, scale=mean / self.shape, size=count)
        most = min(self.most, self.items // 2)
        return np.clip(lengths.round().astype(np.int64), self.least, most)


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
    """The users of one platform, its items, and who liked what when.

    Args:
        people: Position is the user number, which says nothing about who is on other platforms.
        items: Position is the item number.
        chosen: Per user, int64 (positives,), in order of time.
        times: Per user, int64 (positives,), seconds since 1970, strictly increasing.
        moments: float64 (users,). How far from the first love to the last one each user is at the end, from 0 to 1.
        strengths: What the choices were drawn with.
        products: Per item, what is sold; empty where the platform is no shop.
        published: int64 (items,), seconds since 1970. When each item appeared; None where all are there from the start.
    """

    people: People
    items: TasteCatalogue
    chosen: tuple[NDArray[np.int64], ...]
    times: tuple[NDArray[np.int64], ...]
    moments: NDArray[np.float64]
    strengths: Strengths
    products: tuple[Product, ...] = ()
    published: NDArray[np.int64] | None = None

    def choices(self) -> Iterator[Choice]:
        """Every choice, sorted by user and then by time."""
        for user, (items, times) in enumerate(zip(self.chosen, self.times, strict=True)):
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
        logits = taste.appeal(person, self.items, self.moments[user : user + 1], strengths=self.strengths)
        if self.published is not None:
            logits = logits + taste.freshness(self.published, self.times[user][-1:], strengths=self.strengths)
        return logits.ravel()


def any_time(rng: Generator) -> int:
    """A moment of the year, whole minutes, in seconds since 1970."""
    return START + 60 * int(rng.integers(YEAR // 60))


def population(rng: Generator, *, sizes: Sequence[Sizes]) -> tuple[People, ...]:
    """The people of each platform: first come, in one order, those who are on larger platforms, too; then everybody's own."""
    own = [size.users - size.common_users for size in sizes]
    common = max(size.common_users for size in sizes)
    everyone = taste.people(rng, count=common + sum(own))
    ends = common + np.cumsum(own)
    return tuple(
        everyone.take(np.concatenate([np.arange(size.common_users), np.arange(end - size.users + size.common_users, end)]))
        for size, end in zip(sizes, ends, strict=True)
    )


def gather(rng: Generator, *, people: People, items: TasteCatalogue, sizes: Sizes, products: tuple[Product, ...] = ()) -> Crowd:
    """One platform whose items are there from the start: shuffles the people and lets everyone choose."""

    def times(count: int) -> NDArray[np.int64]:
        return START + 60 * np.sort(rng.choice(YEAR // 60, size=count, replace=False))

    return _choices(rng, times, people=people, items=items, sizes=sizes, products=products)


def gather_readers(rng: Generator, *, people: People, items: TasteCatalogue, sizes: Sizes) -> Crowd:
    """One platform whose items appear day by day: everyone comes for some days, and chooses among what is fresh."""

    def times(count: int) -> NDArray[np.int64]:
        stay = int(rng.integers(*STAY))
        first = int(rng.integers((SEASON - stay) * DAY // 60))
        return START + 60 * (first + np.sort(rng.choice(stay * DAY // 60, size=count, replace=False)))

    return _choices(rng, times, people=people, items=items, sizes=sizes, published=appearances(sizes))


def _choices(
    rng: Generator,
    times: Callable[[int], NDArray[np.int64]],
    *,
    people: People,
    items: TasteCatalogue,
    sizes: Sizes,
    products: tuple[Product, ...] = (),
    published: NDArray[np.int64] | None = None,
) -> Crowd:
    people = people.take(rng.permutation(len(people)))
    chosen, when, moments = [], [], []
    for user, count in enumerate(sizes.draw_lengths(rng, len(people))):
        # A short history is a short part of the way: whoever buys twice does not change their love in between.
        way = min(1.0, (count - 1) / sizes.drift)
        path = rng.uniform(0.0, 1.0 - way) + np.linspace(0.0, way, count)
        logits = taste.appeal(people.take(np.array([user])), items, path, strengths=sizes.strengths)
        when.append(times(count))
        if published is not None:
            logits = logits + taste.freshness(published, when[-1], strengths=sizes.strengths)
        chosen.append(taste.choose(rng, logits))
        moments.append(path[-1])
    return Crowd(
        people=people,
        items=items,
        chosen=tuple(chosen),
        times=tuple(when),
        moments=np.array(moments),
        strengths=sizes.strengths,
        products=products,
        published=published,
    )


def appearances(sizes: Sizes) -> NDArray[np.int64]:
    """When each item appears, int64 (items,), ascending, seconds since 1970.

    Before the season begins there are as many as the longest history has, so that nobody runs out of items.
    """
    before = min(sizes.most, sizes.items // 2)
    day = np.floor((np.arange(sizes.items) - before) * SEASON / (sizes.items - before)).astype(np.int64)
    return START + day * DAY + MORNING
