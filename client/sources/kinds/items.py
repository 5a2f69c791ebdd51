"""Items: the public catalogue, a short title and a text per item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.config.source_schema import Flags, ItemsSource
from client.sources.cell_values import as_texts
from client.sources.cleaning import Cleaning
from client.sources.ids import as_ids
from client.sources.item_keys import item_keys
from client.sources.kinds.interactions import keyed
from client.sources.row_texts import further_texts, labelled, numbers, sentences, text_name, wanted
from client.sources.source_rows import Table, Wanted, read_source
from client.sources.tables import SourceReport

DUPLICATE = "duplicate item"
_ROLES = ("title", "description", "category", "price")
_FLAG = "flag {}"
_LONGEST_ATTRIBUTE = 200


@dataclass(frozen=True, kw_only=True)
class Described:
    """One item table.

    Args:
        ids: Unique item ids in the order of the file.
        titles: Per id, null where there is none.
        texts: Per id, '' where there is none.
        keys: Per id, '' where there is none.
        coordinates: float64 (items, numbers) in [0, 1], NaN where missing; None without declared numbers.
        attributes: Attribute -> value per id, null where there is none.
    """

    ids: pl.Series
    titles: pl.Series
    texts: pl.Series
    keys: pl.Series
    coordinates: NDArray[np.float64] | None
    attributes: Mapping[str, pl.Series]
    report: SourceReport


def read_items(source: ItemsSource, cleaning: Cleaning) -> Described:
    """The item table: title first, then categories, description, further columns and number words.

    Raises:
        InputError: the source cannot be read or no row is usable.
    """
    asked = [*Wanted.ids(source, "item"), *_flags(source.flags)]
    asked += [Wanted(name=role, column=source.column(role), required=role in source.columns) for role in _ROLES]
    if "key" in source.columns:
        # Never by its name alone: a column "key" may be a song's.
        asked.append(Wanted(name="key", column=source.column("key"), kind="id"))
    # A further column is required, also where it has one of the roles above.
    asked = list({want.name: want for want in [*asked, *wanted(source)]}.values())
    table = read_source(source, cleaning, asked, public=True)
    frame = keyed(table.frame, cleaning, ("item",))
    kept = frame.unique("item", keep="first", maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - kept.height)
    table = Table(frame=kept, labels=table.labels)

    titles = (
        as_texts(kept["title"]) if "title" in kept.columns else pl.Series([None], dtype=pl.String).new_from_index(0, kept.height)
    )
    none = pl.Series([""], dtype=pl.String).new_from_index(0, kept.height)
    words, places = numbers(table, source.numbers, cleaning, decimal=source.decimal)
    parts = [titles, labelled("category", _categories(kept, source.flags), table)]
    if "description" in kept.columns:
        parts.append(as_texts(kept["description"]))
    parts += further_texts(table, source.text, without=(*_ROLES, *source.numbers))
    if "price" in kept.columns and "price" not in source.numbers:
        parts.append(labelled("price", as_texts(kept["price"]), table))
    return Described(
        ids=kept["item"],
        titles=titles,
        texts=sentences([*parts, *words]),
        keys=item_keys(as_ids(kept["key"]), source.keys) if "key" in kept.columns else none,
        coordinates=places,
        attributes=_attributes(kept, source),
        report=cleaning.report(kept.height),
    )


def _attributes(frame: pl.DataFrame, source: ItemsSource) -> dict[str, pl.Series]:
    """What lists are filtered by: category, price, and the further columns as they are written."""
    found = {"category": _categories(frame, source.flags)}
    names = ["price", *(text_name(column) for column in source.text), *source.numbers]
    found |= {
        name: as_texts(frame[name]) for name in names if name in frame.columns and name not in ("title", "description", *found)
    }
    return {name: texts.str.head(_LONGEST_ATTRIBUTE) for name, texts in found.items() if texts.null_count() < len(texts)}


def _flags(flags: Flags | None) -> list[Wanted]:
    names = flags.names if flags else ()
    return [Wanted(name=_FLAG.format(number), column=flags.first, offset=number) for number in range(len(names)) if flags]


def _categories(frame: pl.DataFrame, flags: Flags | None) -> pl.Series:
    columns: Sequence[pl.Series] = []
    if "category" in frame.columns:
        columns = [as_texts(frame["category"]).str.replace_all(r"\s*\|\s*", ", ")]
    for number, name in enumerate(flags.names if flags else ()):
        marked = as_ids(frame[_FLAG.format(number)]).str.to_lowercase().is_in(["1", "true", "yes"]).fill_null(False)
        columns = [*columns, pl.Series([None, name], dtype=pl.String).gather(marked.cast(pl.UInt32))]
    if not columns:
        return pl.Series([None], dtype=pl.String).new_from_index(0, frame.height)
    joined = pl.DataFrame([column.alias(str(number)) for number, column in enumerate(columns)])
    texts = joined.select(pl.concat_str(pl.all(), separator=", ", ignore_nulls=True).alias("text"))["text"]
    return texts.set((texts == "").fill_null(True), None)
