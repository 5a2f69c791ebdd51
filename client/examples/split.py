"""Which interactions train and which one is held out: leave-one-out by time, or seeded without times.

The held-out item of a user is the last positive one. Training sees neither it nor, for the ranking, does it
count as known; every other interaction of the user, positive or not, is known and is never recommended again. Of a user who has
met every item nothing is held out: it would be the only candidate, first whatever the model is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.sources.tables import Tables

_AT_ONCE = 1 << 16
"""Users that are cut at a time: what is held besides the result does not grow with all of them."""


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Lists of item numbers, one per row: row r is values[offsets[r]:offsets[r + 1]]."""

    offsets: NDArray[np.int64]
    values: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """int64 (rows,)."""
        return np.diff(self.offsets)

    def entries(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All values of some rows: the index into `rows`, the place in the row, and the value; int64 (m,) each."""
        begin, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        row = np.repeat(np.arange(len(rows)), lengths)
        place = np.arange(len(row)) - np.repeat(ends - lengths, lengths)
        return row, place, self.values[np.repeat(begin, lengths) + place].astype(np.int64)

    def some(self, rows: NDArray[np.int64]) -> Ragged:
        """Some of the rows, in that order."""
        return Ragged(offsets=offsets_of(self.lengths()[rows]), values=self.entries(rows)[2].astype(np.int32))


@dataclass(frozen=True, kw_only=True)
class Split:
    """One platform's users, cut into training and held-out.

    Args:
        train: Per user, the positive items that train, oldest first.
        held: int32 (users,). The held-out item, -1 for a user with fewer than two positives, or who has met all items.
        known: Per user, every item met except the held-out one, sorted.
    """

    train: Ragged
    held: NDArray[np.int32]
    known: Ragged

    @property
    def users(self) -> int:
        """Exact number of users with an interaction; private."""
        return len(self.held)

    def holding_out(self, most: int, *, seed: int) -> Split:
        """The same split with the held-out items of at most so many users, drawn at random.

        Nothing else changes: a held-out item that is left out still neither trains nor is known.

        Args:
            most: At least 1.
        """
        users = np.flatnonzero(self.held >= 0)
        if len(users) <= most:
            return self
        drawn = np.random.default_rng([seed, *b"held out"]).choice(users, most, replace=False)
        held = np.full_like(self.held, -1)
        held[drawn] = self.held[drawn]
        return replace(self, held=held)


def ragged(rows: list[NDArray[np.int32]]) -> Ragged:
    """Join lists of item numbers."""
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    return Ragged(offsets=offsets_of(lengths), values=np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32))


def entry_rows(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of each entry of rows that begin at offsets[r] and end at offsets[r + 1], int64 (entries,).

    >>> entry_rows(np.array([0, 2, 2, 3])).tolist()
    [0, 0, 2]
    """
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, one after another, and where the last ends; int64 (rows + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def leave_one_out(tables: Tables, *, seed: int, items: int | None = None) -> Split:
    """Hold out each user's last positive item; without times, a seeded choice, each user's own.

    Removing or adding one user changes no other user's split: the choice depends on the user's own
    id and the seed, never on a position in the table.

    Args:
        items: Of the whole catalogue, where `tables` have a part of it.

    Returns:
        `train` and `known`, ragged int32 lists of item numbers, one per user; `held`, int32 (users,), -1 for a user of whom
        nothing is held out.

    | given | result |
    |---|---|
    | no user | an empty split |
    | a user with one liked item | it trains, and `held` is -1 |
    | a user with two | the older one trains, the newer one is held out |
    | a user who has met every item | all that is liked trains, and `held` is -1 |
    """
    return _cut(tables, seed=seed, catalogue=tables.items if items is None else items)


def nothing_held_out(tables: Tables, *, seed: int) -> Split:
    """All that is liked trains, in the order in which `leave_one_out` has it."""
    return _cut(tables, seed=seed, catalogue=0)


def can_be_held_out(likes: NDArray[np.int64], met: NDArray[np.int64], *, items: int) -> NDArray[np.bool_]:
    """Of which users something is held out: two liked items, and one among all that they have not met; bool (users,).

    Args:
        likes, met: int64 (users,). Items that each has liked and met.
        items: Of the catalogue.
    """
    return (likes >= 2) & (met < items)


def _cut(tables: Tables, *, seed: int, catalogue: int) -> Split:
    """The split where the catalogue has so many items; with 0, nothing is held out."""
    table = tables.interactions
    held = np.full(tables.users, -1, np.int32)
    liked, trained, known = np.zeros(tables.users, np.int64), [], []
    for begin in range(0, tables.users, _AT_ONCE):
        users = slice(begin, min(begin + _AT_ONCE, tables.users))
        offsets = table.offsets[users.start : users.stop + 1]
        rows = slice(offsets[0], offsets[-1])
        user = entry_rows(offsets)
        items, positive = table.item[rows], table.positive[rows]
        likes, counts = items[positive], np.bincount(user[positive], minlength=users.stop - users.start)
        ends = np.cumsum(counts)
        if table.time is None:
            for at in np.flatnonzero(counts).tolist():
                part = slice(ends[at] - counts[at], ends[at])
                likes[part] = user_generator(tables.user_ids[begin + at], seed, "split").permutation(likes[part])
        several = can_be_held_out(counts, np.diff(offsets), items=catalogue)
        last = ends[several] - 1
        held[users][several] = likes[last]
        liked[users] = counts - several
        trained.append(np.delete(likes, last))
        others = items != held[users][user]
        # Sorted within each user: by one number that orders by user first.
        order = user[others] * np.int64(tables.items) + items[others]
        order.sort()
        known.append((order % max(1, tables.items)).astype(np.int32))
    met = np.diff(table.offsets) - (held >= 0)
    return Split(train=_joined(liked, trained), held=held, known=_joined(met, known))


def _joined(lengths: NDArray[np.int64], parts: list[NDArray[np.int32]]) -> Ragged:
    return Ragged(offsets=offsets_of(lengths), values=np.concatenate([np.zeros(0, np.int32), *parts]))


def user_generator(user: str, seed: int, purpose: str) -> np.random.Generator:
    """Randomness of one user alone, for choices that need no secrecy (cuts, orders)."""
    return np.random.default_rng([seed, *purpose.encode(), 0, *user.encode()])
