"""Users' liked items as rows of a matrix, with recent items counting more, and those that an event or a value speaks louder for.

What a model is fitted on counts every like as 1, and so does everything that is released. Only how much an item of a history
says of what comes next may go by its weight: as rows of the fitted matrix weights gained nowhere (see the benchmarks' README).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.examples.split import Ragged, entry_rows
from client.sources.tables import Tables

Sparse: TypeAlias = scipy.sparse.csr_matrix

_USERS_AT_ONCE = 1 << 16
_LEAST = 1e-9
"""Weight of an item that is very old: 0 would take it out of the history, and so out of its own prediction."""


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Liked items by user, oldest first.

    Args:
        liked: Per user.
        items: Of the catalogue.
        ordered: Whether the order is one of time; else no item is more recent than another.
        weight: float32 (likes,), above 0, of geometric mean 1 on a platform. What the platform file's `events` and `weight` make
            of each of `liked.values`; None: the same of all.

    Raises:
        ValueError: there is not one weight for each like.
    """

    liked: Ragged
    items: int
    ordered: bool
    weight: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight.shape != self.liked.values.shape:
            raise ValueError(f"{self.weight.shape} weights of {self.liked.values.shape} likes")

    @property
    def users(self) -> int:
        """How many; private."""
        return len(self.liked)

    def rows(self) -> Sparse:
        """1 for every liked item, (users, items)."""
        values = np.ones(len(self.liked.values), np.float32)
        return scipy.sparse.csr_matrix((values, self.liked.values, self.liked.offsets), shape=(self.users, self.items))

    def recent(
        self,
        users: NDArray[np.int64],
        *,
        half_life: float | None,
        emphasis: float = 0.0,
        lengths: NDArray[np.int64] | None = None,
    ) -> Sparse:
        """Some users' histories, float32 (n, items): 1, and where there is an order half of it for an item `half_life` items old.

        Items of a row are in ascending order.

        Args:
            users: int64 (n,).
            emphasis: Exponent of the weight by which an item counts; 0: weights do not matter.
            lengths: int64 (n,). How many of each user's items count, the oldest first; by default all.
        """
        row, place, item = self.liked.entries(users)
        taken = self.liked.lengths()[users] if lengths is None else lengths
        counts = place < taken[row]
        row, place, item = row[counts], place[counts], item[counts]
        weight = np.ones(len(row))
        if half_life is not None and self.ordered:
            weight = 0.5 ** ((taken[row] - 1 - place) / half_life)
        if emphasis and self.weight is not None:
            weight *= self.weight[self.liked.offsets[users][row] + place].astype(np.float64) ** emphasis
        weight = np.maximum(weight, _LEAST)
        offsets = np.searchsorted(row, np.arange(len(users) + 1))
        found = scipy.sparse.csr_matrix((weight.astype(np.float32), item, offsets), shape=(len(users), self.items))
        found.sum_duplicates()
        return found


def liked_histories(tables: Tables, liked: Ragged) -> Histories:
    """What users like, with the weights of the interactions behind it.

    Args:
        liked: Per user, of the tables' positive interactions some or all.
    """
    table = tables.interactions
    positive = table.weight[table.positive]
    weight = None
    if len(positive) and positive.min() != positive.max():
        weight = np.ones(len(liked.values), np.float32)
        for begin in range(0, len(liked), _USERS_AT_ONCE):
            end = min(begin + _USERS_AT_ONCE, len(liked))
            rows, likes = slice(*table.offsets[[begin, end]]), slice(*liked.offsets[[begin, end]])
            pair = _pairs(table.offsets[begin : end + 1], table.item[rows], tables.items)
            order = np.argsort(pair, kind="stable")
            wanted = _pairs(liked.offsets[begin : end + 1], liked.values[likes], tables.items)
            weight[likes] = table.weight[rows][order[np.searchsorted(pair, wanted, sorter=order)]]
        weight /= np.float32(np.exp(np.log(weight, dtype=np.float64).mean())) if len(weight) else np.float32(1.0)
    return Histories(liked=liked, items=tables.items, ordered=table.time is not None, weight=weight)


def _pairs(offsets: NDArray[np.int64], items: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """One number for each pair of a user and an item, int64 (rows,)."""
    numbers: NDArray[np.int64] = entry_rows(offsets) * np.int64(count) + items
    return numbers


@dataclass(frozen=True, kw_only=True)
class MetEntries:
    """What each item of one history adds to every item's score, by a matrix of which only the rows of these items are read.

    Args:
        row: int64 (entries,). Place among the items of the history.
        column: int32 or int64 (entries,). The item that is scored.
        value: float32 (entries,). What is added; entries of one place are added up.
        shape: Items of the history, and of the catalogue.
    """

    row: NDArray[np.int64]
    column: NDArray[np.integer]
    value: NDArray[np.float32]
    shape: tuple[int, int]

    @classmethod
    def of(cls, history: Sparse, matrix: Sparse) -> MetEntries:
        """Of each entry of the history, times the row of the matrix that it names."""
        row, column, value = entries_of(matrix, history.indices)
        return cls(row=row, column=column, value=history.data[row] * value, shape=(history.nnz, matrix.shape[1]))

    def total(self) -> NDArray[np.float32]:
        """The sum over the history, float32 (items,)."""
        found = np.zeros(self.shape[1], np.float32)
        np.add.at(found, self.column, self.value)
        return found

    def by_item(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of some items, float32 (items of the history, m).

        Args:
            items: int64 (m,), each once.
        """
        asked = np.zeros(self.shape[1], np.bool_)
        asked[items] = True
        there, order = np.flatnonzero(asked[self.column]), np.argsort(items)
        at = order[np.searchsorted(items, self.column[there], sorter=order)]
        found = np.zeros((self.shape[0], len(items)), np.float32)
        np.add.at(found, (self.row[there], at), self.value[there])
        return found


def entries_of(matrix: Sparse, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32]]:
    """The entries of some rows: the place in `rows`, the column and the value of each, (entries,) each.

    For the few rows of one person: a matrix made of them by SciPy takes longer than what is done with it.

    Args:
        rows: (n,).
    """
    begin, end = matrix.indptr[rows].astype(np.int64), matrix.indptr[rows + 1].astype(np.int64)
    lengths = end - begin
    row = np.repeat(np.arange(len(rows)), lengths)
    at = np.arange(len(row)) + np.repeat(end - np.cumsum(lengths), lengths)
    return row, matrix.indices[at], matrix.data[at]


def one_by_one(history: Sparse) -> Sparse:
    """A history of one person as one row for each of its items, (items of the history, items); it may be that already."""
    count = len(history.data)
    if history.shape[0] == count and (np.diff(history.indptr) == 1).all():
        return history
    return scipy.sparse.csr_matrix((history.data, history.indices, np.arange(count + 1)), shape=(count, history.shape[1]))
