"""The generated world: a shop, a video site and a news site, whose users' tastes carry over between them.

The same seed and scale give the same files, byte for byte (with the same library versions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from shared.base.errors import InputError
from simulations.worlds import files, news, shop, video
from simulations.worlds.crowd import Crowd, Sizes, gather, population
from simulations.worlds.world import World, open_world


@dataclass(frozen=True, kw_only=True)
class Trade:
    """A platform of the generated world.

    Args:
        write: Its files.
        file: The text of its platform file, with `{users}` left out.
    """

    write: Callable[..., None]
    file: str


PLATFORMS = {
    "shop": Trade(write=shop.write_shop, file=shop.PLATFORM_FILE),
    "video": Trade(write=video.write_video, file=video.PLATFORM_FILE),
    "news": Trade(write=news.write_news, file=news.PLATFORM_FILE),
}
"""The order fixes which draws are whose."""

LEAST_SCALE, MOST_SCALE = 0.1, 10.0

README = """\
# A generated world

Three invented platforms, written by `simulations/worlds/generated.py` from seed {seed} at scale {scale}: a shop, a video site
and a news site with {users} users and {items} items each. Nobody in it is real.

- {shared} people are on all three platforms, under ids that do not tell.
- Everyone loves two topics and has a style (budget or premium, for beginners or experts, classic or modern). Interest moves
  from the first topic to the second, and spreads to the topics that go with them; which go with which is the same everywhere,
  and is not to be seen in the texts alone.
- Planted dirt, to be counted and left out by whoever reads it:

| file | what | rows |
|---|---|---|
| shop/events.csv | written twice | {repeated} |
| shop/events.csv | of a product that is not sold | {unsold} |
| shop/events.csv | without a customer | {nobody} |
| video/ratings.parquet | without a film | {filmless} |
| video/follows.csv | of a viewer who rated nothing | {strangers} |
| news/news.db, clicks | on an article that was withdrawn | {withdrawn} |

A purchase also leaves the view that led to it, so most products of a customer have two rows in shop/events.csv.
"""


def write_world(folder: Path, *, seed: int = 0, scale: float = 1.0) -> World:
    """Writes the generated world into `folder`, over an earlier one if there is one.

    Args:
        seed: 0 or more; another seed is another world of the same kind.
        scale: Factor of users and items, from 0.1 to 10; 1 is about 1,000 users and 300 items a platform.

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
    for name, (crowd, rng) in crowds(seed=seed, sizes=sizes).items():
        PLATFORMS[name].write(folder, crowd=crowd, rng=rng)
    files.write_text(folder / "README.md", _readme(seed=seed, scale=scale, sizes=sizes))
    # The platform files come last: a world that was interrupted before its end names no missing source.
    for name, platform in PLATFORMS.items():
        files.write_text(folder / f"{name}.toml", platform.file.format(users=sizes.users))
    return open_world(folder)


def sizes_at(scale: float) -> Sizes:
    """The sizes of a world at that scale.

    Raises:
        InputError: the scale is out of range.
    """
    if not LEAST_SCALE <= scale <= MOST_SCALE:
        raise InputError(f"scale {scale} is out of range", do=f"give a number from {LEAST_SCALE} to {MOST_SCALE:g}")
    whole = Sizes()
    return Sizes(users=round(whole.users * scale), items=round(whole.items * scale))


def crowds(*, seed: int, sizes: Sizes) -> dict[str, tuple[Crowd, Generator]]:
    """What nobody sees of a world: per platform its crowd, and the generator that its writer goes on with."""
    born = population(np.random.default_rng((seed, 0)), sizes=sizes, platforms=len(PLATFORMS))
    made = {}
    for stream, (name, people) in enumerate(zip(PLATFORMS, born, strict=True), start=1):
        rng = np.random.default_rng((seed, stream))
        made[name] = (gather(rng, people=people, sizes=sizes), rng)
    return made


def _readme(*, seed: int, scale: float, sizes: Sizes) -> str:
    return README.format(
        seed=seed,
        scale=f"{scale:g}",
        users=sizes.users,
        items=sizes.items,
        shared=sizes.shared_users,
        repeated=shop.REPEATED,
        unsold=shop.UNKNOWN,
        nobody=shop.KEYLESS,
        filmless=video.KEYLESS,
        strangers=video.UNKNOWN,
        withdrawn=news.UNKNOWN,
    )
