"""A generated world of any size: platforms of one trade with as many users, items and events as are asked for.

The worlds of `simulations/worlds/generated.py` are for reading; this one is for measuring. It is drawn a block of users at a
time: memory holds the events of one file, and ids and lengths of all users.

Popularity follows Zipf's law (Zipf 1949; exponent 0.9), lengths of histories a log-normal law. Items have hidden themes. A user
loves four themes one after the other, and each theme draws in one other, its companion: so recent items say more than old ones,
and items are liked together that no text connects. Titles name a maker, who has one theme most of the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

from shared.base.errors import InputError
from simulations.worlds import files
from simulations.worlds.crowd import START, YEAR
from simulations.worlds.products import gtin13
from simulations.worlds.vocabulary import MANNER, TOPICS, headline
from simulations.worlds.world import World, open_world

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]
TableFormat = Literal["parquet", "csv"]

LEAST_USERS, LEAST_ITEMS, MOST_ITEMS = 10, 20, 10_000_000
SHARE_OF_RANGE = 4
"""A user has met a quarter of the range at most."""
_EVENTS_AT_ONCE = 1_000_000
_BLOCKS_PER_FILE = 4
_LOVES = 4
_LOVED, _COMPANION = 0.65, 0.2
"""Shares of events in the theme that is loved at the moment, and in its companion; the rest are popular things."""
_IN_TURN = 0.8
"""Share of a user's events in which the theme is the one whose time it is; else any of the four."""
_REDRAWS = 4
_ZIPF, _SPREAD = 0.9, 0.8
_MAKER_TELLS = 0.8
_MAKERS = ("ka", "lo", "mi", "ne", "ro", "su", "ta", "vi", "be", "do", "fa", "zu")

PLATFORM_FILE = """\
# One platform of a generated world. Everything in this file is public; the rows of its sources never leave the platform.
name = "{name}"
users = {users}

[privacy]
epsilon = 8.0
delta = {delta:.0e}

[sources.orders]
kind = "interactions"
path = [
{paths}
]
columns = {{ user = "customer", item = "product", time = "time" }}
time_format = "unix"

[sources.products]
kind = "items"
path = "{name}/products.csv"
columns = {{ item = "product", title = "title", category = "department", description = "description", key = "gtin" }}
keys = "gtin"
"""

README = """\
# A generated world of {platforms} platform(s), for measuring

Written by `simulations/worlds/large.py` from seed {seed}: each platform has {users:,} users, {items:,} items and {events:,}
events; {common:,} products are in every platform's range, under other ids, and are found by their GTINs. Nobody in it is real.

Popularity follows Zipf's law, lengths of histories a log-normal law. Products have hidden themes; a customer loves four of them
one after the other, and each theme draws in one other. A title's first word is its maker, who mostly makes one theme.

    fedfuse check {first}.toml
    fedfuse recommend --platform {first}.toml --user {user}
"""


@dataclass(frozen=True, kw_only=True)
class LargeSizes:
    """How large each platform is.

    Args:
        users: Each has an event.
        events: Rows of each platform, of nearly as many different pairs of user and item.
        platforms: How many of that size.
        in_common: Share of each platform's range that all of them sell.

    Raises:
        InputError: a size is out of range, or the sizes do not go together.
    """

    users: int
    items: int
    events: int
    platforms: int = 1
    in_common: float = 0.5

    def __post_init__(self) -> None:
        if self.users < LEAST_USERS or not LEAST_ITEMS <= self.items <= MOST_ITEMS:
            raise InputError(
                f"{self.users:,} users and {self.items:,} items",
                do=f"give at least {LEAST_USERS} users, and from {LEAST_ITEMS} to {MOST_ITEMS:,} items",
            )
        most = self.users * (self.items // SHARE_OF_RANGE)
        if not self.users <= self.events <= most // 2:
            raise InputError(
                f"{self.events:,} events of {self.users:,} users and {self.items:,} items",
                do=f"give from {self.users:,} (one each) to {most // 2:,} (an eighth of the range each)",
            )
        if not 1 <= self.platforms <= 99 or not 0 <= self.in_common <= 1:
            raise InputError(
                f"{self.platforms} platforms with {self.in_common} of their range in common",
                do="give from 1 to 99 platforms and a share from 0 to 1",
            )

    @property
    def common(self) -> int:
        """Products that every platform sells."""
        return round(self.in_common * self.items) if self.platforms > 1 else self.items

    def named(self) -> list[str]:
        """The platforms' names."""
        return ["shop"] if self.platforms == 1 else [f"shop-{number:02d}" for number in range(1, self.platforms + 1)]


@dataclass(frozen=True, kw_only=True)
class ThemedRange:
    """What one platform sells, by theme.

    Args:
        product: int64 (items,). Number in the trade, theme by theme.
        theme: int64 (items,), ascending.
        bounds: int64 (themes + 1,). Items of a theme are bounds[theme]:bounds[theme + 1].
        rising: float64 (items + 1,), from 0 to 1. Popularity summed up.
        companion: int64 (themes,). The theme that each draws in.
    """

    product: Numbers = field(repr=False)
    theme: Numbers = field(repr=False)
    bounds: Numbers = field(repr=False)
    rising: Floats = field(repr=False)
    companion: Numbers = field(repr=False)

    @property
    def themes(self) -> int:
        """How many."""
        return len(self.companion)

    def draw(self, rng: Generator, theme: Numbers) -> Numbers:
        """An item of each theme by popularity, int64 (n,); of the whole range where the theme is -1 or has no item."""
        known = np.maximum(theme, 0)
        whole = (theme < 0) | (self.bounds[known] == self.bounds[known + 1])
        low = np.where(whole, 0.0, self.rising[self.bounds[known]])
        high = np.where(whole, 1.0, self.rising[self.bounds[known + 1]])
        drawn = np.searchsorted(self.rising, low + rng.random(len(theme)) * (high - low), side="right") - 1
        first, last = np.where(whole, 0, self.bounds[known]), np.where(whole, len(self.product), self.bounds[known + 1]) - 1
        # Rounding of a sum must not lead into the next theme.
        items: Numbers = np.clip(drawn, first, last)
        return items


def write_large_world(folder: Path, sizes: LargeSizes, *, seed: int = 0, kind: TableFormat = "parquet") -> World:
    """Write a world of such sizes into a new or empty folder.

    Args:
        kind: Of the files of events.

    Raises:
        InputError: the folder is not empty, or the seed is negative.
        StorageError: a file cannot be written.
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative", do="give a whole number, 0 or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("is there already, and not an empty folder", where=str(folder), do="name a new folder")
    names, user = sizes.named(), ""
    texts = {}
    for place, (name, sold) in enumerate(zip(names, ranges(sizes, seed=seed), strict=True)):
        rng = np.random.default_rng((seed, 1, place))
        codes = _codes(rng, "P", len(sold.product))
        customers = _codes(rng, "C", sizes.users)
        user = user or str(customers[0])
        _write_products(folder / name / "products.csv", sold, codes, seed=seed)
        paths = _write_events(folder / name, rng, sold, sizes, customers, codes, kind)
        texts[name] = PLATFORM_FILE.format(
            name=name,
            users=sizes.users,
            delta=min(1e-4, 0.1 / sizes.users),
            paths="\n".join(f'    "{name}/{path}",' for path in paths),
        )
    facts = {"seed": seed, "users": sizes.users, "items": sizes.items, "events": sizes.events}
    shared = sizes.common if sizes.platforms > 1 else 0
    readme = README.format(platforms=sizes.platforms, common=shared, first=names[0], user=user, **facts)
    files.write_text(folder / "README.md", readme)
    # The platform files come last: a world that was interrupted before its end names no missing source.
    for name, text in texts.items():
        files.write_text(folder / f"{name}.toml", text)
    return open_world(folder)


def ranges(sizes: LargeSizes, *, seed: int) -> list[ThemedRange]:
    """What each platform sells of the trade's products: the common ones, and as many of its own as fill its range."""
    rng = np.random.default_rng((seed, 0))
    own = sizes.items - sizes.common
    trade = sizes.common + sizes.platforms * own
    themes = int(np.clip(sizes.items // 100, len(TOPICS), 1000))
    theme = rng.integers(themes, size=trade)
    popularity = (rng.permutation(trade) + 1.0) ** -_ZIPF
    companion = np.roll(rng.permutation(themes), 1)
    found = []
    for place in range(sizes.platforms):
        first = sizes.common + place * own
        product = np.concatenate([np.arange(sizes.common), np.arange(first, first + own)])
        product = product[np.argsort(theme[product], kind="stable")]
        rising = np.concatenate([[0.0], np.cumsum(popularity[product])])
        found.append(
            ThemedRange(
                product=product,
                theme=theme[product],
                bounds=np.searchsorted(theme[product], np.arange(themes + 1)),
                rising=rising / rising[-1],
                companion=companion,
            )
        )
    return found


def draw_events(rng: Generator, sold: ThemedRange, lengths: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """The events of some users, one user after the other, oldest first.

    Args:
        lengths: int64 (users,). Events of each.

    Returns:
        Place of the user among these, place of the item in the range, and seconds since 1970, int64 (events,) each.
    """
    user = np.repeat(np.arange(len(lengths)), lengths)
    moment = rng.random(len(user))
    moment = moment[np.lexsort((moment, user))]
    loves = rng.integers(sold.themes, size=(len(lengths), _LOVES))
    turn = (moment * _LOVES).astype(np.int64)
    turn = np.where(rng.random(len(user)) < _IN_TURN, turn, rng.integers(_LOVES, size=len(user)))
    loved = loves[user, turn]
    chance = rng.random(len(user))
    theme = np.where(chance < _LOVED, loved, np.where(chance < _LOVED + _COMPANION, sold.companion[loved], -1))
    item = sold.draw(rng, theme)
    for attempt in range(_REDRAWS):
        again = _repeated(user, item, len(sold.product))
        if not len(again):
            break
        item[again] = sold.draw(rng, theme[again] if attempt < _REDRAWS // 2 else np.full(len(again), -1))
    begin = START + rng.integers(YEAR // 2, size=len(lengths))
    time = begin[user] + (moment * (YEAR // 2)).astype(np.int64)
    return user, item, time


def _repeated(user: Numbers, item: Numbers, items: int) -> Numbers:
    """Events whose user has met the item in an earlier one."""
    pair = user * items + item
    order = np.argsort(pair, kind="stable")
    return np.sort(order[1:][pair[order[1:]] == pair[order[:-1]]])


def _lengths(rng: Generator, sizes: LargeSizes) -> Numbers:
    """Events of every user, int64 (users,): one each, the others by a log-normal share, a quarter of the range at most."""
    share = rng.lognormal(sigma=_SPREAD, size=sizes.users)
    lengths, most = np.ones(sizes.users, np.int64), sizes.items // SHARE_OF_RANGE
    left = sizes.events - sizes.users
    while left:
        lengths += rng.multinomial(left, share / share.sum())
        left = int((lengths - most).clip(0).sum())
        lengths = np.minimum(lengths, most)
        share = np.where(lengths < most, share, 0.0)
    return lengths


def _write_events(
    folder: Path,
    rng: Generator,
    sold: ThemedRange,
    sizes: LargeSizes,
    customers: NDArray[np.object_],
    codes: NDArray[np.object_],
    kind: TableFormat,
) -> list[str]:
    """Files of some millions of events each; their names."""
    products = pl.Series(codes, dtype=pl.String)
    lengths = _lengths(rng, sizes)
    names = []
    for begin, frames in _files(lengths):
        parts = []
        for users in frames:
            user, item, time = draw_events(rng, sold, lengths[users])
            parts.append(
                pl.DataFrame(
                    {
                        "customer": pl.Series(customers[users], dtype=pl.String).gather(user),
                        "product": products.gather(item),
                        "time": time,
                    }
                ).sort("time", maintain_order=True)
            )
        names.append(f"orders-{begin:03d}.{kind}")
        with files.write_folder(folder / names[-1]) as draft:
            table = pl.concat(parts)
            if kind == "csv":
                table.write_csv(draft, line_terminator="\n")
            else:
                table.write_parquet(draft, compression="zstd", statistics=False)
    return names


def _files(lengths: Numbers) -> Iterator[tuple[int, list[slice]]]:
    """Number of each file, and its blocks of users."""
    ends = np.cumsum(lengths)
    marks = np.arange(_EVENTS_AT_ONCE, int(ends[-1]), _EVENTS_AT_ONCE)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(ends, marks) + 1, [len(lengths)]]))
    blocks = [slice(int(begin), int(end)) for begin, end in pairwise(cuts)]
    for number, first in enumerate(range(0, len(blocks), _BLOCKS_PER_FILE)):
        yield number, blocks[first : first + _BLOCKS_PER_FILE]


def _codes(rng: Generator, letter: str, count: int) -> NDArray[np.object_]:
    """Different ids in no order, object (count,)."""
    numbers = rng.permutation(count)
    width = len(str(count))
    return np.array([f"{letter}{number:0{width}d}" for number in numbers.tolist()], object)


def _write_products(path: Path, sold: ThemedRange, codes: Sequence[str] | NDArray[np.object_], *, seed: int) -> None:
    rows = []
    for code, product, theme in zip(codes, sold.product.tolist(), sold.theme.tolist(), strict=True):
        # Of the product alone, so that all who sell it tell the same of it.
        rng = np.random.default_rng((seed, 2, product))
        draws = rng.integers(1 << 30, size=8).tolist()
        topic = TOPICS[theme % len(TOPICS)]
        maker = theme if rng.random() < _MAKER_TELLS else draws[0] % sold.themes
        price, level, era = (MANNER[axis][1 if draw % 2 else -1][draw // 2 % 3] for axis, draw in enumerate(draws[1:4]))
        thing, doing, scene = (
            options[draw % len(options)]
            for options, draw in zip((topic.things, topic.doings, topic.scenes), draws[4:7], strict=True)
        )
        rows.append(
            {
                "product": code,
                "gtin": gtin13(product, american=False),
                "title": headline(f"{_maker(maker)} {era} {price} {thing}, {level} level"),
                "department": topic.department,
                "description": f"For {doing} {scene}.",
            }
        )
    files.write_csv(path, rows)


def _maker(number: int) -> str:
    """A name of three syllables.

    >>> _maker(0), _maker(145)
    ('Kakaka', 'Lokalo')
    """
    syllables, left = [], number
    for _ in range(3):
        left, place = divmod(left, len(_MAKERS))
        syllables.append(_MAKERS[place])
    return "".join(syllables).capitalize()
