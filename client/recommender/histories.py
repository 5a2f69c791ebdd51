"""Users' liked items as rows of a matrix, with recent items counting more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.examples.split import Ragged

Sparse: TypeAlias = scipy.sparse.csr_matrix

_LEAST = 1e-9
"""Weight of an item that is very old: 0 would take it out of the history, and so out of its own prediction."""


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Liked items by user, oldest first.

    Args:
        liked: Per user.
        items: Of the catalogue.
        ordered: Whether the order is one of time; else no item is more recent than another.
    """

    liked: Ragged
    items: int
    ordered: bool

    @property
    def users(self) -> int:
        """How many; private."""
        return len(self.liked)

    def rows(self) -> Sparse:
        """1 for every liked item, (users, items)."""
        values = np.ones(len(self.liked.values), np.float32)
        return scipy.sparse.csr_matrix((values, self.liked.values, self.liked.offsets), shape=(self.users, self.items))

    def recent(self, users: NDArray[np.int64], *, half_life: float | None, lengths: NDArray[np.int64] | None = None) -> Sparse:
        """Some users' histories, float32 (n, items): 1, and where there is an order half of it for an item `half_life` items old.

        Args:
            users: int64 (n,).
            lengths: int64 (n,). How many of each user's items count, the oldest first; by default all.
        """
        row, place, item = self.liked.entries(users)
        taken = self.liked.lengths()[users] if lengths is None else lengths
        counts = place < taken[row]
        row, place, item = row[counts], place[counts], item[counts]
        weight = (
            np.ones(len(row))
            if half_life is None or not self.ordered
            else np.maximum(0.5 ** ((taken[row] - 1 - place) / half_life), _LEAST)
        )
        return scipy.sparse.csr_matrix((weight.astype(np.float32), (row, item)), shape=(len(users), self.items))


def one_by_one(history: Sparse) -> Sparse:
    """A history of one person as one row for each of its items, (items of the history, items)."""
    return scipy.sparse.csr_matrix(
        (history.data, (np.arange(history.nnz), history.indices)), shape=(history.nnz, history.shape[1]), dtype=np.float32
    )
