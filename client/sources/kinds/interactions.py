"""Interactions: who met which item, how strongly, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from client.config.source_schema import InteractionsSource
from client.sources.cell_values import as_ids, as_numbers, as_times
from client.sources.cleaning import UNKNOWN_ITEM, Cleaning
from client.sources.numbering import Numbering, offsets
from client.sources.readers.cells import A_LIST, INEXACT, UNUSABLE
from client.sources.source_rows import Wanted, read_source
from client.sources.tables import Interactions, SourceReport

DUPLICATE = "duplicate (user, item)"
IMPOSSIBLE_TIME = "impossible time"


@dataclass(frozen=True, kw_only=True)
class Met:
    """One source's interactions after cleaning by row.

    Args:
        frame: `user`, `item` (ids), `weight` (float32), `positive` (bool), `time` (int64 seconds, or null throughout).
        timed: Whether every row has a time.
    """

    frame: pl.DataFrame
    timed: bool
    cleaning: Cleaning


def read_interactions(source: InteractionsSource, cleaning: Cleaning) -> Met:
    """One source's rows: a weight above 0 where the row says that the item was liked, else 0.

    Raises:
        InputError: the source cannot be read.
    """
    valued = source.threshold is not None or source.weight == "log"
    wanted = [Wanted(name=role, column=source.column(role), key=True, kind="id") for role in ("user", "item")]
    if source.events is not None:
        wanted.append(Wanted(name="event", column=source.column("event"), kind="id"))
    if valued:
        wanted.append(Wanted(name="value", column=source.column("value")))
    wanted.append(
        Wanted(
            name="time",
            column=source.column("time"),
            required="time" in source.columns or source.time_format is not None,
            kind="time",
        )
    )
    frame = keyed(read_source(source, cleaning, wanted).frame, cleaning, ("user", "item"))
    frame = timed(frame, source.time_format, cleaning)

    weight = pl.lit(1.0)
    if source.events is not None:
        frame = keyed(frame, cleaning, ("event",))
        weight = pl.col("event").replace_strict(source.events, default=0.0, return_dtype=pl.Float64)
    if valued:
        frame = _valued(frame, cleaning)
        if source.weight == "log":
            frame = cleaning.keep(frame, pl.col("value") >= 0, otherwise="value below 0")
            weight = weight * pl.col("value").log1p()
        if source.threshold is not None:
            # Below the threshold an item is known to the user, no more.
            weight = pl.when(pl.col("value") >= source.threshold).then(weight).otherwise(0.0)
    has_time = "time" in frame.columns
    time = pl.col("time") if has_time else pl.lit(None, pl.Int64).alias("time")
    frame = frame.select("user", "item", weight.cast(pl.Float32).alias("weight"), time).with_columns(
        (pl.col("weight") > 0).alias("positive")
    )
    return Met(frame=frame, timed=has_time, cleaning=cleaning)


def merge_interactions(
    parts: Sequence[Met], catalogue: Numbering | None
) -> tuple[Numbering, Numbering, Interactions, list[SourceReport]]:
    """All interactions of a platform, one row per (user, item): items, users, interactions, one report per part.

    Of several rows on one pair the last time and the largest weight stay, and one positive row makes it positive.
    Times are kept only if every source has them; else the order is that of the sources and of their files.

    Args:
        catalogue: The declared items; None takes the items that were met, in the order of their ids.
    """
    frames = []
    for index, part in enumerate(parts):
        frame = part.frame
        if catalogue is not None:
            frame = part.cleaning.keep(frame, pl.lit(catalogue.numbers(frame["item"]).is_not_null()), otherwise=UNKNOWN_ITEM)
        frames.append(frame.with_columns(pl.lit(index, pl.Int32).alias("part")))
    rows = pl.concat(frames).with_row_index("row")
    items = catalogue or Numbering(rows["item"].unique().sort())
    users = Numbering(rows["user"].unique(maintain_order=True))
    rows = rows.with_columns(users.numbers(rows["user"]).alias("user"), items.numbers(rows["item"]).alias("item"))
    merged = rows.group_by("user", "item").agg(
        pl.col("time").max(), pl.col("weight").max(), pl.col("positive").any(), pl.col("row").max(), pl.col("part").min()
    )
    keeps_time = all(part.timed for part in parts)
    merged = merged.sort("user", *(["time"] if keeps_time else []), "row")
    reports = []
    for index, part in enumerate(parts):
        kept = int((merged["part"] == index).sum())
        part.cleaning.lose(DUPLICATE, frames[index].height - kept)
        reports.append(part.cleaning.report(kept, usable=frames[index].height))
    interactions = Interactions(
        offsets=offsets(merged["user"], len(users)),
        item=merged["item"].to_numpy().astype(np.int32),
        weight=merged["weight"].to_numpy().astype(np.float32),
        positive=merged["positive"].to_numpy().astype(np.bool_),
        time=merged["time"].to_numpy().astype(np.int64) if keeps_time else None,
    )
    return items, users, interactions, reports


def keyed(frame: pl.DataFrame, cleaning: Cleaning, roles: Sequence[str]) -> pl.DataFrame:
    """The frame with these columns as ids, without the rows that lack one."""
    for role in roles:
        none = frame[role].str.starts_with(UNUSABLE).fill_null(False)
        for why in (A_LIST, INEXACT):
            cleaning.lose(f"{role}: {why}", int((none & (frame[role] == UNUSABLE + why).fill_null(False)).sum()))
        frame = frame.filter(~none)
        frame = frame.with_columns(as_ids(frame[role]).alias(role))
        frame = cleaning.keep(frame, pl.col(role).is_not_null(), otherwise=f"missing {role}")
    return frame


def timed(frame: pl.DataFrame, time_format: str | None, cleaning: Cleaning) -> pl.DataFrame:
    """The frame with `time`, if it has it, in seconds since 1970, without the rows whose time is impossible."""
    if "time" not in frame.columns:
        return frame
    frame = cleaning.keep(frame, pl.lit(as_ids(frame["time"]).is_not_null()), otherwise="missing time")
    frame = frame.with_columns(as_times(frame["time"], time_format).alias("time"))
    return cleaning.keep(frame, pl.col("time").is_not_null(), otherwise=IMPOSSIBLE_TIME)


def _valued(frame: pl.DataFrame, cleaning: Cleaning) -> pl.DataFrame:
    frame = cleaning.keep(frame, pl.lit(as_ids(frame["value"]).is_not_null()), otherwise="missing value")
    frame = frame.with_columns(as_numbers(frame["value"]).alias("value"))
    frame = cleaning.keep(frame, pl.col("value").is_not_null(), otherwise="unparsable value")
    return cleaning.keep(frame, pl.col("value").is_finite(), otherwise="value not finite")
