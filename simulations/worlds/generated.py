"""The generated world: two shops of one trade, a video site and a news site, whose users' tastes carry over between them.

The small shop has what a small shop has, fewer customers than the other and a fifth of what each buys there, and most of its
range is in the large one's, under other ids: the public keys of the products alone say so. The news site's articles are new
every day.

The same seed and scale give the same files, byte for byte (with the same library versions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from shared.base.errors import InputError
from simulations.worlds import corner, files, news, shop, taste, video
from simulations.worlds.crowd import COMMON, Crowd, Sizes, gather, gather_readers, population
from simulations.worlds.products import make_products
from simulations.worlds.taste import People, Strengths
from simulations.worlds.world import World, open_world
from simulations.worlds.writers import Writer


@dataclass(frozen=True, kw_only=True)
class Trade:
    """A platform of the generated world.

    Args:
        write: Its files.
        file: The text of its platform file, with `{users}` left out.
        sizes: At scale 1.
    """

    write: Callable[..., None]
    file: str
    sizes: Sizes


LOOKED_AT = Strengths(look=3.5)
"""In a shop people choose by what they see, too."""

PLATFORMS = {
    "shop": Trade(
        write=shop.write_shop,
        file=shop.PLATFORM_FILE,
        sizes=Sizes(users=1200, items=500, positives=14.0, least=2, most=60, strengths=LOOKED_AT),
    ),
    "corner": Trade(
        write=corner.write_corner,
        file=corner.PLATFORM_FILE,
        sizes=Sizes(users=500, items=400, positives=2.6, least=2, most=12, shape=1.0, strengths=LOOKED_AT),
    ),
    "video": Trade(write=video.write_video, file=video.PLATFORM_FILE, sizes=Sizes(users=210, items=200)),
    "news": Trade(
        write=news.write_news, file=news.PLATFORM_FILE, sizes=Sizes(users=210, items=420, positives=10.0, least=3, most=30)
    ),
}
"""The order fixes which draws are whose."""

IN_COMMON = 0.8
"""Share of the small shop's range that the large one sells, too."""

LEAST_SCALE, MOST_SCALE = 0.1, 10.0

README = """\
# A generated world

Four invented platforms, written by `simulations/worlds/generated.py` from seed {seed} at scale {scale}. Nobody in it is real.

| platform | what it is | users | items | liked items per user |
|---|---|---|---|---|
{table}

- shop and corner are of one trade. {shared} of the {range} products in corner's range are in shop's, too, under other ids and
  in other words, their GTINs with another number of digits; what sells well is rather in both. The other platforms share no item
  with anybody.
- corner is small: most of its customers have bought two or three products.
- Every article of news has a day on which it appears (`published` of its table `articles`), and is hardly read after the third
  day. So most articles that a reader clicked last had few clicks before, or none.
- {common}% of the users of each platform are on every other that is not smaller, too, under ids that do not tell.
- Everyone loves two topics and has a style (budget or premium, for beginners or experts, classic or modern). Interest moves
  from the first topic to the second, and spreads to the topics that go with them; which go with which is the same everywhere,
  and is not to be seen in the texts alone.
- In the shops people also choose by looks, of which no text says anything: shop has its products' pictures as vectors, corner
  has none.
- Planted dirt, to be counted and left out by whoever reads it:

| file | what | rows |
|---|---|---|
| shop/events.csv | written twice | {repeated} |
| shop/events.csv | of a product that is not sold | {unsold} |
| shop/events.csv | without a customer | {nobody} |
| corner/till.csv | of an article that is no longer sold | {gone} |
| corner/till.csv | without a card | {cardless} |
| video/ratings.parquet | without a film | {filmless} |
| video/follows.csv | of a viewer who rated nothing | {strangers} |
| news/news.db, clicks | on an article that was withdrawn | {withdrawn} |

A purchase also leaves the view that led to it, so most products of a customer have two rows in shop/events.csv.
"""

WHAT = {
    "shop": "a large shop: CSV events, products and profiles, JSON-lines reviews, Parquet image vectors",
    "corner": "a small shop: CSV with semicolons, a till's lines and the range",
    "video": "a video site: Parquet ratings, JSON-lines films, CSV social ties, a TSV knowledge graph",
    "news": "a news site: one SQLite database of clicks, articles and readers",
}


def write_world(folder: Path, *, seed: int = 0, scale: float = 1.0) -> World:
    """Writes the generated world into `folder`, over an earlier one if there is one.

    Args:
        seed: 0 or more; another seed is another world of the same kind.
        scale: Factor of users and items, from 0.1 to 10; 1 is what `PLATFORMS` says.

    Raises:
        InputError: a value is out of range, or `folder` is a file or holds platform files of another world.
        StorageError: a file cannot be written.
    """
    sizes = sizes_at(scale)
    if seed < 0:
        raise InputError(f"seed {seed} is negative", do="give a whole number, 0 or more")
    if folder.exists() and not folder.is_dir():
        raise InputError("a file, not a folder", where=str(folder), do="name a folder for the generated world")
    foreign = sorted(path.name for path in folder.glob("*.toml") if path.stem not in PLATFORMS)
    if foreign:
        raise InputError(
            f"holds platform files of another world: {', '.join(foreign)}", where=str(folder), do="name an empty or new folder"
        )
    made = crowds(seed=seed, sizes=sizes)
    for name, (crowd, rng) in made.items():
        PLATFORMS[name].write(folder, crowd=crowd, rng=rng)
    files.write_text(folder / "README.md", _readme({name: crowd for name, (crowd, _) in made.items()}, seed=seed, scale=scale))
    # The platform files come last: a world that was interrupted before its end names no missing source.
    for name, platform in PLATFORMS.items():
        files.write_text(folder / f"{name}.toml", platform.file.format(users=sizes[name].users))
    return open_world(folder)


def sizes_at(scale: float) -> dict[str, Sizes]:
    """The sizes of a world's platforms at that scale.

    Raises:
        InputError: the scale is out of range.
    """
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise InputError(f"scale {scale} is out of range", do=f"give a number from {LEAST_SCALE} to {MOST_SCALE:g}")
    return {name: platform.sizes.scaled(scale) for name, platform in PLATFORMS.items()}


def crowds(*, seed: int, sizes: Mapping[str, Sizes]) -> dict[str, tuple[Crowd, Generator]]:
    """What nobody sees of a world: per platform its crowd, and the generator that its writer goes on with."""
    born = population(np.random.default_rng((seed, 0)), sizes=[sizes[name] for name in PLATFORMS])
    people = dict(zip(PLATFORMS, born, strict=True))
    streams = {name: np.random.default_rng((seed, stream)) for stream, name in enumerate(PLATFORMS, start=1)}
    made = _shops(np.random.default_rng((seed, len(PLATFORMS) + 1)), people, sizes, streams)
    for name, gathered in (("video", gather), ("news", gather_readers)):
        items = taste.taste_catalogue(streams[name], count=sizes[name].items)
        made[name] = gathered(streams[name], people=people[name], items=items, sizes=sizes[name])
    return {name: (made[name], streams[name]) for name in PLATFORMS}


def _shops(
    rng: Generator, people: Mapping[str, People], sizes: Mapping[str, Sizes], streams: Mapping[str, Generator]
) -> dict[str, Crowd]:
    """Both shops choose from the trade's products, so that one that both sell is as popular and of the same kind on both."""
    large, small = sizes["shop"].items, sizes["corner"].items
    both = round(IN_COMMON * small)
    trade = taste.taste_catalogue(rng, count=large + small - both)
    products = make_products(Writer(rng), trade)
    # A small shop buys what sells: each product of the large range gets in by its popularity (Gumbel's way to draw without
    # replacement).
    known = np.argsort(-trade.popularity[:large] - rng.gumbel(size=large))[:both]
    ranges = {
        "shop": np.arange(large),
        "corner": rng.permutation(np.concatenate([known, np.arange(large, len(trade))])),
    }
    return {
        name: gather(
            streams[name],
            people=people[name],
            items=trade.pick(numbers),
            sizes=sizes[name],
            products=tuple(products[number] for number in numbers),
        )
        for name, numbers in ranges.items()
    }


def _readme(made: Mapping[str, Crowd], *, seed: int, scale: float) -> str:
    def row(name: str, crowd: Crowd) -> str:
        likes = sum(len(chosen) for chosen in crowd.chosen) / len(crowd.people)
        return f"| {name} | {WHAT[name]} | {len(crowd.people)} | {len(crowd.items)} | {likes:.1f} |"

    sold = {name: {product.gtin for product in made[name].products} for name in ("shop", "corner")}
    return README.format(
        seed=seed,
        scale=f"{scale:g}",
        table="\n".join(row(name, crowd) for name, crowd in made.items()),
        shared=len(sold["shop"] & sold["corner"]),
        range=len(sold["corner"]),
        common=round(100 * COMMON),
        repeated=shop.REPEATED,
        unsold=shop.UNKNOWN,
        nobody=shop.KEYLESS,
        gone=corner.UNKNOWN,
        cardless=corner.KEYLESS,
        filmless=video.KEYLESS,
        strangers=video.UNKNOWN,
        withdrawn=news.UNKNOWN,
    )
