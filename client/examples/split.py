"""Which interactions train and which one is held out: leave-one-out by time, or seeded without times.

The held-out item of a user is the last positive one. Training sees neither it nor, for the ranking, does it
count as known; every other interaction of the user, positive or not, is known and is never recommended again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.sources.tables import Tables


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
        """All values of some rows: in which of `rows` each stands, at which place of its row, and itself; int64 (m,) each."""
        begin, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        row = np.repeat(np.arange(len(rows)), lengths)
        place = np.arange(len(row)) - np.repeat(ends - lengths, lengths)
        return row, place, self.values[np.repeat(begin, lengths) + place].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One platform's users, cut into training and held-out.

    Args:
        train: Per user, the positive items that train, oldest first.
        held: int32 (users,). The held-out item, -1 for a user with fewer than two positives.
        known: Per user, every item met except the held-out one, sorted.
    """

    train: Ragged
    held: NDArray[np.int32]
    known: Ragged

    @property
    def users(self) -> int:
        """Exact number of users with an interaction; private."""
        return len(self.held)


def ragged(rows: list[NDArray[np.int32]]) -> Ragged:
    """Join lists of item numbers."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ragged(offsets=offsets, values=np.concatenate(rows).astype(np.int32) if rows else np.zeros(0, np.int32))


def leave_one_out(tables: Tables, *, seed: int) -> Split:
    """Hold out each user's last positive item; without times, a seeded choice, each user's own.

    Removing or adding one user changes no other user's split: the choice depends on the user's own
    id and the seed, never on a position in the table.
    """
    table = tables.interactions
    train, known = [], []
    held = np.full(tables.users, -1, np.int32)
    for user in range(tables.users):
        rows = slice(table.offsets[user], table.offsets[user + 1])
        items, positive = table.item[rows], table.positive[rows]
        liked = items[positive]
        if table.time is None:
            liked = user_generator(tables.user_ids[user], seed, "split").permutation(liked)
        if len(liked) >= 2:
            held[user] = liked[-1]
            train.append(liked[:-1])
            known.append(np.sort(items[items != liked[-1]]))
        else:
            train.append(liked)
            known.append(np.sort(items))
    return Split(train=ragged(train), held=held, known=ragged(known))


def user_generator(user: str, seed: int, purpose: str) -> np.random.Generator:
    """Randomness of one user alone, for choices that need no secrecy (cuts, orders)."""
    return np.random.default_rng([seed, *purpose.encode(), 0, *user.encode()])
