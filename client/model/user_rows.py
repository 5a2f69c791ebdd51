"""Users' rows as training and evaluations read them: a text is written and encoded when its user is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.compute.feature_cache import TrunkCache
from client.examples.user_examples import Examples, HeldOutViews, TrainingViews
from client.examples.vectors import user_vectors
from client.model.towers import Rows, cached_rows
from client.sources.tables import Tables
from shared.privacy.plan import EVALUATED

_AT_ONCE = 2048
"""Held-out users that are in memory at a time, with their features: some 100 MB."""


@dataclass(frozen=True, kw_only=True)
class UserBatch:
    """Some users' rows: what they read as and what they predict.

    Args:
        rows: Their sequences, in the order of `examples`.
    """

    examples: Examples
    rows: Rows

    def __len__(self) -> int:
        return len(self.examples)

    def some(self, rows: NDArray[np.int64]) -> UserBatch:
        """Some of the rows, in that order."""
        return UserBatch(examples=self.examples.some(rows), rows=self.rows.some(rows))


class UserRows(Protocol):
    """Rows of a platform's users, by number."""

    def of(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of those of some users that have any, int64 (users that have rows, rows each)."""

    def read(self, rows: NDArray[np.int64]) -> UserBatch:
        """Some of the rows, in that order."""


class KnownRows:
    """Rows that are in memory already.

    Args:
        by_user: int64 (users, rows each). A user's rows of `batch`; -1 throughout for one that has none.
    """

    def __init__(self, batch: UserBatch, by_user: NDArray[np.int64]) -> None:
        self._batch, self._by_user = batch, by_user

    def of(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `UserRows.of`."""
        found = self._by_user[users[users < len(self._by_user)]]
        return found[(found >= 0).all(1)]

    def read(self, rows: NDArray[np.int64]) -> UserBatch:
        """As `UserRows.read`."""
        return self._batch.some(rows)


class TrainingRows:
    """The views that training reads, each written and encoded when it is asked for.

    Args:
        cache: Keeps the features of what was read, as far as they have room there.
    """

    def __init__(self, views: TrainingViews, tables: Tables, cache: TrunkCache) -> None:
        self._views, self._tables, self._cache = views, tables, cache
        self._ahead: UserBatch | None = None
        self._place = np.zeros(0, np.int64)

    def of(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """As `UserRows.of`."""
        return self._views.of(users)

    def everybodys(self) -> NDArray[np.int64]:
        """All rows that there are, int64 (rows,)."""
        return self.of(np.arange(self._tables.users)).reshape(-1)

    def read_ahead(self, progress: Callable[[int], None] | None = None) -> None:
        """Write and encode all rows now.

        Args:
            progress: Called with the number of texts just read.

        Raises:
            StorageError: their features cannot be kept.
        """
        rows = self.everybodys()
        examples = self._views.read(rows)
        ready = cached_rows(self._cache, examples.sequences, user_vectors(self._tables, examples), progress)
        # One number a row, so that finding rows takes no look at them.
        self._place = np.full(self._tables.users * self._views.views, -1)
        self._place[rows] = np.arange(len(rows))
        self._ahead = UserBatch(examples=examples, rows=ready)

    def read(self, rows: NDArray[np.int64]) -> UserBatch:
        """As `UserRows.read`."""
        if self._ahead is not None:
            return self._ahead.some(self._place[rows])
        return _encoded(self._views.read(rows), self._tables, self._cache)


class HeldOutRows:
    """The rows of users with a held-out item, each written and encoded when it is asked for.

    Where an evaluation reads them all, they are written once.
    """

    def __init__(self, views: HeldOutViews, tables: Tables, cache: TrunkCache) -> None:
        self._views, self._tables, self._cache = views, tables, cache
        self._all: dict[bool, UserBatch | None] = {}

    def __len__(self) -> int:
        return len(self._views)

    def read(self, rows: NDArray[np.int64], *, serving: bool) -> Iterator[UserBatch]:
        """Some of the rows, in that order, in as many batches as memory asks for.

        Args:
            serving: Whether users are read as the recommender reads them; else as training does, which bounds every friend's
                influence.
        """
        serving = serving or not self._tables.ties
        if len(rows) == len(self) <= EVALUATED and serving not in self._all:
            self._all[serving] = None  # tried once: where it fails, users are read by parts
            self._all[serving] = self._everybody(serving=serving)
        known = self._all.get(serving)
        if known is not None:
            yield known.some(rows)
            return
        for begin in range(0, len(rows), _AT_ONCE):
            yield _encoded(self._views.read(rows[begin : begin + _AT_ONCE], serving=serving), self._tables, self._cache)

    def _everybody(self, *, serving: bool) -> UserBatch:
        examples = self._views.read(np.arange(len(self)), serving=serving)
        rows = cached_rows(self._cache, examples.sequences, user_vectors(self._tables, examples))
        return UserBatch(examples=examples, rows=rows)


def _encoded(examples: Examples, tables: Tables, cache: TrunkCache) -> UserBatch:
    features = cache.read(examples.sequences)
    return UserBatch(examples=examples, rows=Rows(features, np.arange(len(examples)), user_vectors(tables, examples)))
