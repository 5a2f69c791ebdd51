"""Canary users: made up, and no two of them share a pair of items, so that their scores are independent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Ragged, Split, ragged
from client.model.prepared_platform import PlatformRows
from shared.base.errors import InputError

LIKED = 5
"""Items of a canary's history."""

_ATTEMPTS = 40
"""Draws for each canary before the packing is taken to be full."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Users who are added to a platform, some of them.

    Args:
        histories: int64 (m, liked). The items of each, by number.
        inside: bool (m,). Who is added.
    """

    histories: NDArray[np.int64] = field(repr=False)
    inside: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.inside)


def packed_canaries(items: NDArray[np.int64], *, most: int, liked: int = LIKED, random: np.random.Generator) -> Canaries:
    """As many canaries as fit, `most` at most, no two of which share two items; each is in by a coin of its own.

    Args:
        items: Numbers of the items that they may like.

    Raises:
        InputError: too few items for any.
    """
    count = len(items)
    if count < 2 * liked:
        raise InputError(
            f"{count} items are too few for canaries that like {liked}", do="attack a platform that shares more items"
        )
    taken = np.zeros((count, count), bool)
    np.fill_diagonal(taken, True)
    found: list[NDArray[np.int64]] = []
    failed = 0
    while len(found) < most and failed < _ATTEMPTS:
        chosen = _block(taken, liked, random)
        if chosen is None:
            failed += 1
            continue
        failed = 0
        taken[np.ix_(chosen, chosen)] = True
        found.append(chosen)
    return Canaries(histories=items[np.array(found)], inside=random.random(len(found)) < 0.5)


def with_canaries(rows: PlatformRows, canaries: Canaries) -> PlatformRows:
    """The platform with those canaries among its users who are in."""
    added = canaries.histories[canaries.inside].astype(np.int32)
    split = rows.split
    longer = Split(
        train=_appended(split.train, added),
        held=np.append(split.held, np.full(len(added), -1, np.int32)),
        known=_appended(split.known, np.sort(added, axis=1)),
    )
    return replace(rows, split=longer)


def _appended(lists: Ragged, added: NDArray[np.int32]) -> Ragged:
    return ragged([*(lists[row] for row in range(len(lists))), *added])


def _block(taken: NDArray[np.bool_], size: int, random: np.random.Generator) -> NDArray[np.int64] | None:
    """Items no two of which were taken together, or None where the draw ends before there are enough."""
    free = np.flatnonzero(~taken.all(1))
    if not len(free):
        return None
    # Items with many free partners first, so that none is left over.
    weights = (~taken[free]).sum(1).astype(np.float64)
    chosen = [int(random.choice(free, p=weights / weights.sum()))]
    while len(chosen) < size:
        open_ = np.flatnonzero(~taken[chosen].any(0))
        if not len(open_):
            return None
        chosen.append(int(random.choice(open_)))
    return np.array(chosen, np.int64)
