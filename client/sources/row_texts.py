"""Rows as short plain sentences: what items and users are called, and the columns that describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.config.source_schema import ItemsSource, NumberRange, ProfilesSource
from client.config.table_location import Column
from client.sources.cell_values import LONGEST_TEXT, as_texts
from client.sources.cleaning import Cleaning
from client.sources.number_buckets import bucketed
from client.sources.numbering import Numbering
from client.sources.source_rows import Table, Wanted
from client.sources.tables import Vectors

# After these words a value reads on without a colon: "by Toni Morrison", "from Porto".
_LEADING = frozenset({"about", "at", "by", "for", "from", "in", "of", "on", "with"})


def text_name(column: Column) -> str:
    """The frame's name for a further column.

    >>> text_name("Publisher"), text_name(3)
    ('Publisher', 'column 3')
    """
    return column if isinstance(column, str) else f"column {column}"


def wanted(source: ItemsSource | ProfilesSource) -> list[Wanted]:
    """The further columns that the source's `text`, `numbers` and `values` speak of."""
    columns = {text_name(column): source.column(column) for column in source.further()}
    return [Wanted(name=name, column=column) for name, column in columns.items()]


def label(column: Column, table: Table) -> str:
    """How a column is announced in a text; '' for a column without a name.

    >>> label("Book-Author", Table(frame=pl.DataFrame(), labels={})), label("by", Table(frame=pl.DataFrame(), labels={}))
    ('book author: ', 'by ')
    """
    name = column if isinstance(column, str) else table.labels.get(text_name(column), "")
    words = re.sub(r"[\s_-]+", " ", name).strip().lower()
    return f"{words} " if words in _LEADING else words and f"{words}: "


def labelled(column: Column, texts: pl.Series, table: Table) -> pl.Series:
    """Texts with the column's label before them; null stays null."""
    return pl.Series([label(column, table)]).new_from_index(0, len(texts)) + texts


def sentences(parts: Sequence[pl.Series]) -> pl.Series:
    """Parts of each row as one text, at most 2,000 characters; '' where no part says anything.

    >>> sentences([pl.Series(["Who?", "Alien"]), pl.Series(["by A", None])]).to_list()
    ['Who? by A', 'Alien']
    """
    frame = pl.DataFrame([part.alias(str(number)) for number, part in enumerate(parts)])
    joined = frame.select(pl.concat_str(pl.all(), separator=". ", ignore_nulls=True))[frame.columns[0]]
    return joined.str.replace_all(r"([.!?])\. ", "$1 ").str.head(LONGEST_TEXT).fill_null("")


def numbers(
    table: Table, declared: Mapping[str, NumberRange], cleaning: Cleaning, *, decimal: str
) -> tuple[list[pl.Series], NDArray[np.float64] | None]:
    """Bucket words, and coordinates (rows, numbers) in [0, 1] with NaN where missing; None if no number is declared."""
    texts, columns = [], []
    for name, bounds in declared.items():
        got = bucketed(table.frame[name], bounds, cleaning, name=name, decimal=decimal)
        texts.append(labelled(name, got.words, table))
        columns.append(got.coordinates.fill_null(float("nan")).to_numpy())
    return texts, np.stack(columns, axis=1) if columns else None


def further_texts(table: Table, columns: Sequence[Column], *, without: Sequence[str]) -> list[pl.Series]:
    """The `text` columns with their labels, but for those that are shown in other words."""
    return [labelled(column, as_texts(table.frame[text_name(column)]), table) for column in columns if column not in without]


def coordinates(values: NDArray[np.float64] | None, places: pl.Series, owners: Numbering) -> Vectors | None:
    """Coordinates (rows, width) with NaN where missing, moved to their owners' numbers; None stays None.

    An owner without any number is absent. Where only some of several numbers are missing, they are set to the middle
    of their bounds, which favours no side.
    """
    if values is None:
        return None
    known = ~np.isnan(values).all(axis=1)
    rows = places.to_numpy()[known]
    moved = np.zeros((len(owners), values.shape[1]), np.float32)
    moved[rows] = np.nan_to_num(values[known], nan=0.5)
    present = np.zeros(len(owners), np.bool_)
    present[rows] = True
    return Vectors(values=moved, present=present)
