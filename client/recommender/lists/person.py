"""Whom a list is for: a user of the platform, or somebody who is in no table and says what they like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Ragged, ragged
from client.recommender.evidence import NOBODY
from client.recommender.histories import Histories
from client.sources.item_keys import spelled_keys

Items = NDArray[np.int32]
NO_ITEMS: Items = np.zeros(0, np.int32)


class Catalogue(Protocol):
    """What is asked of `client.recommender.serving.kept_model.Shelf`, which holds more."""

    @property
    def item_ids(self) -> Sequence[str]:
        """Position is the item's number."""

    @property
    def item_keys(self) -> Sequence[str]:
        """Public keys, '' for an item that has none."""

    @property
    def items(self) -> int:
        """How many."""

    @property
    def twins(self) -> Ragged:
        """Per item, the others that have its key."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whom items are recommended to.

    Args:
        number: `NOBODY` for somebody who is in no table.
        liked: int32. Items of the history, oldest first.
        met: int32. Items that are not recommended again.
        in_order: Whether the order of the history is one of time.
        weight: float32, as `Histories.weight`, of each liked item; None where all weigh alike.
    """

    number: int
    liked: Items = field(repr=False)
    met: Items = field(repr=False)
    in_order: bool
    weight: NDArray[np.float32] | None = field(default=None, repr=False)

    def history(self, items: int) -> Histories:
        """The history of this one person.

        Args:
            items: Of the catalogue.
        """
        return Histories(liked=ragged([self.liked]), items=items, ordered=self.in_order, weight=self.weight)

    def after(self, events: Sequence[tuple[int, bool]]) -> Person:
        """The same person after they met further items.

        Args:
            events: Item and whether it is liked, oldest first. What is liked again is the newest.
        """
        if not events:
            return self
        newest = list(dict.fromkeys(item for item, liked in reversed(events) if liked))[::-1]
        new = np.asarray(newest, np.int32)
        met = np.asarray([item for item, _ in events], np.int32)
        stays = ~np.isin(self.liked, new)
        # What is new weighs as much as likes do in the (geometric) mean, which is 1.
        weight = None if self.weight is None else np.concatenate([self.weight[stays], np.ones(len(new), np.float32)])
        return Person(
            number=self.number,
            liked=np.concatenate([self.liked[stays], new]).astype(np.int32),
            weight=weight,
            met=np.union1d(self.met, met).astype(np.int32),
            in_order=self.in_order,
        )


class ItemNames:
    """Items by their ids and public keys.

    Args:
        shelf: Whose items.
    """

    def __init__(self, shelf: Catalogue) -> None:
        self._by_id = {name: place for place, name in enumerate(shelf.item_ids)}
        self._by_key: Mapping[str, int] = {key: place for place, key in reversed(list(enumerate(shelf.item_keys))) if key}
        # One of each kind is enough to know how a key may be spelled here.
        self._kinds = list(dict.fromkeys(f"{key.partition(':')[0]}:" for key in self._by_key))

    def place(self, name: str) -> int | None:
        """The number of the item with this id or key; None for an unknown one."""
        if name in self._by_id:
            return self._by_id[name]
        return next((self._by_key[key] for key in spelled_keys(name, self._kinds) if key in self._by_key), None)

    def example(self) -> str:
        """How items are named here."""
        key = next(iter(self._by_key), "")
        return f"{next(iter(self._by_id))!r}" + (f" or {key!r}" if key else "")


def somebody_who_likes(items: Sequence[int]) -> Person:
    """Somebody who is in no table; in the order in which items are named, none is older than another."""
    liked = np.asarray(list(dict.fromkeys(items)), np.int32)
    return Person(number=NOBODY, liked=liked, met=np.unique(liked), in_order=False)


def with_twins(shelf: Catalogue, items: Items) -> Items:
    """These items, and after them all that have a key of theirs: another entry of the same book is no news."""
    return np.append(items, shelf.twins.entries(items.astype(np.int64))[2]).astype(np.int32)
