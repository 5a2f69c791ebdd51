"""Ids as numbers: an item's or a user's position."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray


class Numbering:
    """The numbers of ids, in the order in which the ids are given.

    Args:
        ids: Unique, none missing.

    >>> Numbering(pl.Series(["b", "a"])).numbers(pl.Series(["a", "x", "b"])).to_list()
    [1, None, 0]
    """

    def __init__(self, ids: pl.Series) -> None:
        self._ids = ids.alias("id")
        self._table = pl.DataFrame({"id": ids}).with_row_index("number").with_columns(pl.col("number").cast(pl.Int32))

    def __len__(self) -> int:
        return len(self._ids)

    @cached_property
    def ids(self) -> list[str]:
        """The ids; position is the number."""
        return self._ids.to_list()

    @property
    def spelled(self) -> pl.Series:
        """The ids as a column."""
        return self._ids

    def numbers(self, ids: pl.Series) -> pl.Series:
        """Int32 numbers of ids, null for those that are unknown. Integers are looked up as their texts are, each once."""
        if ids.dtype.is_integer():
            known = pl.DataFrame({"id": ids.unique()})
            known = known.with_columns(self.numbers(known["id"].cast(pl.String)).alias("number"))
            return pl.DataFrame({"id": ids}).join(known, on="id", how="left", maintain_order="left", nulls_equal=True)["number"]
        return pl.DataFrame({"id": ids}).join(self._table, on="id", how="left", maintain_order="left")["number"]

    def texts(self, numbers: pl.Series, texts: pl.Series) -> list[str]:
        """One text per id, '' where none is given."""
        given = pl.DataFrame({"number": numbers, "text": texts})
        return self._table.join(given, on="number", how="left", maintain_order="left")["text"].fill_null("").to_list()


def offsets(numbers: pl.Series, count: int) -> NDArray[np.int64]:
    """Where each number's rows begin in a column that is sorted by number: int64 (count + 1,)."""
    return np.searchsorted(numbers.to_numpy(), np.arange(count + 1)).astype(np.int64)
