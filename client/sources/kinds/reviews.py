"""Reviews and tags: users' texts about items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from client.config.source_schema import ReviewsSource
from client.sources.cell_values import LONGEST_TEXT, as_numbers, as_texts
from client.sources.cleaning import UNKNOWN_USER, Cleaning
from client.sources.ids import as_ids
from client.sources.kinds.interactions import keyed, time_wanted, timed
from client.sources.numbering import Numbering, offsets
from client.sources.source_rows import Wanted, read_source
from client.sources.tables import Notes, SourceReport

DUPLICATE = "duplicate (user, item, text)"
SHOWN = 3
"""Public notes that one item's text shows."""


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """One source of notes.

    Args:
        item_texts: One text per item from its first public notes; None unless the source is public.
    """

    notes: Notes
    item_texts: list[str] | None
    report: SourceReport


def read_reviews(source: ReviewsSource, cleaning: Cleaning, users: Numbering, items: Numbering) -> Reviewed:
    """Notes by user; a note on an item outside the catalogue has item -1.

    Raises:
        InputError: the source cannot be read or no row is usable.
    """
    asked = Wanted.ids(source, "user", "item")
    asked.append(Wanted(name="text", column=source.column("text"), key=True))
    asked.append(Wanted(name="stars", column=source.column("stars"), required="stars" in source.columns))
    asked.append(time_wanted(source))
    frame = keyed(read_source(source, cleaning, asked).frame, cleaning, ("user", "item"))
    frame = timed(frame, source.time_format, cleaning)
    frame = frame.with_columns(_texts(frame, source.decimal, cleaning))
    frame = cleaning.keep(frame, pl.col("text").is_not_null(), otherwise="missing text")
    kept = frame.unique(["user", "item", "text"], keep="first", maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - kept.height)
    frame = kept.with_columns(users.numbers(kept["user"]).alias("user"), items.numbers(kept["item"]).fill_null(-1).alias("item"))

    item_texts = _item_texts(frame, items) if source.public else None
    frame = cleaning.keep_known(frame, frame["user"].is_not_null(), ids=kept["user"], among=users, otherwise=UNKNOWN_USER)
    frame = frame.sort("user", *(["time"] if "time" in frame.columns else []), maintain_order=True)
    notes = Notes(
        offsets=offsets(frame["user"], len(users)),
        item=frame["item"].to_numpy().astype(np.int32),
        text=frame["text"].to_list(),
        public=source.public,
    )
    return Reviewed(notes=notes, item_texts=item_texts, report=cleaning.report(frame.height))


def _texts(frame: pl.DataFrame, decimal: str, cleaning: Cleaning) -> pl.Series:
    texts = as_texts(frame["text"])
    if "stars" not in frame.columns:
        return texts.alias("text")
    stars = as_numbers(frame["stars"], decimal=decimal)
    stars = stars.set(~stars.is_finite().fill_null(False), None)
    cleaning.lose("stars: no number (row kept)", int((as_ids(frame["stars"]).is_not_null() & stars.is_null()).sum()))
    said = as_ids(stars) + " stars: " + texts
    return said.zip_with(said.is_not_null(), texts).str.head(LONGEST_TEXT).alias("text")


def _item_texts(frame: pl.DataFrame, items: Numbering) -> list[str]:
    # In the order of the file, and also of authors without interactions: the source says that all may read them.
    first = frame.filter(pl.col("item") >= 0).group_by("item", maintain_order=True).agg(pl.col("text").head(SHOWN).str.join(". "))
    return items.texts(first["item"], first["text"].str.replace_all(r"([.!?])\. ", "$1 ").str.head(LONGEST_TEXT))
