"""Interactions: who met which item, how strongly, and when."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from client.config.source_schema import InteractionsSource, ReviewsSource
from client.sources.cell_values import LATEST, PLAUSIBLE_FROM, as_numbers, as_times
from client.sources.cleaning import UNKNOWN_ITEM, Cleaning
from client.sources.ids import LISTED, as_ids
from client.sources.numbering import Numbering, offsets
from client.sources.readers.cells import A_LIST, INEXACT, UNUSABLE, canonical_text
from client.sources.source_rows import Wanted, read_source
from client.sources.tables import UNTIMED, EventCount, Interactions, SourceReport
from client.sources.time_formats import likely_formats

DUPLICATE = "duplicate (user, item)"
IMPOSSIBLE_TIME = "impossible time"
TIME_NAMES = (
    *("timestamp", "Timestamp", "ts", "datetime", "date", "Date", "created_at", "createdAt", "event_time", "timestamp_ms"),
    *("unixReviewTime", "reviewTime", "start_timestamp", "when"),
)
"""Columns that are read as times where the platform file names none."""
_EXAMPLES = '"%d/%m/%Y %H:%M", "unix-ms", "excel"'
_SHOWN = 10
_MOST_EVENTS = 50
"""Names in a column of events from which on they are no kinds of event, but one for each row."""
_EXPLODED = "explode = true in the source reads each entry of a list as a row"
_CURES = {
    LISTED: "[ids] refuse_lists = false takes such a text as one id; numbers are to be written without commas between thousands",
    A_LIST: "of an object, export the value that is the id",
    INEXACT: "ids that went through floating-point numbers have lost digits: write the column as integers or as text",
}
"""What to do about what is no id."""
_EXPLODING = {("interactions", "item"), ("social", "friend")}
"""Kind of source and role that may hold lists."""


@dataclass(frozen=True, kw_only=True)
class Met:
    """One source's interactions after cleaning by row.

    Args:
        frame: `user`, `item` (ids), `weight` (float32), `positive` (bool), `time` (int64 seconds, null where there is none).
        timed: Whether the source has times; a row of it may lack one.
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
    wanted = Wanted.ids(source, "user", "item", explode=source.explode, exact=True)
    weighed = source.events is not None
    # Without weights events are read for a warning alone.
    named = weighed or "event" in source.columns
    wanted.append(Wanted(name="event", column=source.column("event"), required=named, kind="id"))
    if valued:
        wanted.append(Wanted(name="value", column=source.column("value")))
    wanted.append(time_wanted(source))
    frame = keyed(read_source(source, cleaning, wanted).frame, cleaning, ("user", "item"))
    frame = timed(frame, source.time_format, cleaning)

    weight = pl.lit(1.0)
    if source.events is None:
        frame = _unweighed(frame, cleaning)
    else:
        frame = keyed(frame, cleaning, ("event",))
        weights = _weights(frame["event"], source.events, cleaning)
        weight = pl.col("event").replace_strict(weights, default=0.0, return_dtype=pl.Float64)
    if "value" in source.columns and not valued:
        cleaning.warn("values are not read, so every row counts as liked: threshold = NUMBER says from which on")
    if valued:
        frame = _valued(frame, source.decimal, cleaning)
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
    Times are kept if any source has them; a row without one is before all others of its user. Without any, the order is that of
    the sources and of their files.

    Args:
        catalogue: The declared items; None takes the items that were met, in the order of their ids.
    """
    frames = []
    for index, part in enumerate(parts):
        frame = part.frame
        if catalogue is not None:
            known = catalogue.numbers(frame["item"]).is_not_null()
            if len(known) and not known.any() and len(catalogue):
                spelled = f"the catalogue's ids are spelled like {catalogue.ids[0]!r}"
                part.cleaning.warn(
                    f"no row's item is in the catalogue: {spelled}, and the column of items is to hold the same ids"
                )
            frame = part.cleaning.keep_known(frame, known, ids=frame["item"], among=catalogue, otherwise=UNKNOWN_ITEM)
        frames.append(frame.with_columns(pl.lit(index, pl.Int32).alias("part")))
    rows = pl.concat(_of_one_type(frames)).with_row_index("row")
    items = catalogue or Numbering(rows["item"].unique().cast(pl.String).sort())
    users = Numbering(rows["user"].unique(maintain_order=True).cast(pl.String))
    rows = rows.with_columns(users.numbers(rows["user"]).alias("user"), items.numbers(rows["item"]).alias("item"))
    keeps_time = any(part.timed for part in parts)
    merged = _ordered(_merged(rows, len(items)), timed=keeps_time)
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
        time=merged["time"].fill_null(UNTIMED).to_numpy().astype(np.int64) if keeps_time else None,
    )
    return items, users, interactions, reports


def _of_one_type(frames: Sequence[pl.DataFrame]) -> Sequence[pl.DataFrame]:
    """The frames with ids as texts, unless all are of one type of integers."""
    for name in ("user", "item"):
        if len({frame.schema[name] for frame in frames}) > 1:
            frames = [frame.with_columns(pl.col(name).cast(pl.String)) for frame in frames]
    return frames


def _merged(rows: pl.DataFrame, items: int) -> pl.DataFrame:
    """One row per (user, item), in the order of each pair's last row. Pairs with one row, which are most, are left alone."""
    pair = rows["user"].cast(pl.Int64) * items + rows["item"]
    ordered = pair.sort().to_numpy()
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(several):
        return rows
    again = pair.is_in(pl.Series(several).implode())
    merged = (
        rows.filter(again)
        .group_by("user", "item")
        .agg(pl.col("time").max(), pl.col("weight").max(), pl.col("positive").any(), pl.col("row").max(), pl.col("part").min())
    )
    return pl.concat([rows.filter(~again), merged.select(rows.columns)]).sort("row")


def _ordered(rows: pl.DataFrame, *, timed: bool) -> pl.DataFrame:
    """Rows that are in order by `row`, by user and then by time, those without a time first."""
    if not rows.height:
        return rows
    time = rows["time"].fill_null(UNTIMED) - UNTIMED if timed else pl.Series([0]).new_from_index(0, rows.height)
    # One number instead of two columns sorts in a third of the time; users below 2^31 and seconds to 2100 fit into 63 bits.
    key = rows["user"].cast(pl.Int64) * (LATEST + 1) + time
    return rows.with_columns(key.alias("key")).sort("key", maintain_order=True)


def keyed(frame: pl.DataFrame, cleaning: Cleaning, roles: Sequence[str]) -> pl.DataFrame:
    """The frame without the rows in which one of these columns holds no id."""
    for role in roles:
        if frame.schema[role].is_integer():
            frame = cleaning.keep(frame, pl.col(role).is_not_null(), otherwise=f"missing {role}")
            continue
        flagged = frame[role].str.starts_with(UNUSABLE).fill_null(False)
        if flagged.any():
            for reason, rows in frame[role].filter(flagged).value_counts().sort(role).iter_rows():
                cleaning.lose(f"{role}: {(why := reason.removeprefix(UNUSABLE))}", rows)
                if why in _CURES:
                    exploded = (cleaning.kind, role) in _EXPLODING and why in (LISTED, A_LIST)
                    cleaning.warn(f"{role}: {_EXPLODED + '; ' if exploded else ''}{_CURES[why]}")
            frame = frame.filter(~flagged)
        frame = cleaning.keep(frame, pl.col(role).is_not_null(), otherwise=f"missing {role}")
    return frame


def time_wanted(source: InteractionsSource | ReviewsSource) -> Wanted:
    """The times of a source that may have none."""
    return Wanted(
        name="time",
        column=source.column("time"),
        required="time" in source.columns or source.time_format is not None,
        kind="time",
        exact=True,
        aliases=TIME_NAMES,
    )


def timed(frame: pl.DataFrame, time_format: str | None, cleaning: Cleaning) -> pl.DataFrame:
    """The frame with `time`, if it has it, in seconds since 1970, without the rows whose time is impossible.

    A row without a time stays: that somebody met an item is known, and no more. It is before all others of its user.
    """
    if "time" not in frame.columns:
        return frame
    spelled = frame["time"]
    times = as_times(spelled, time_format)
    without = spelled.is_null()
    cleaning.lose("missing time (row kept, before those with one)", int(without.sum()))
    frame = frame.with_columns(times.alias("time"))
    impossible = times.is_null() & ~without
    if impossible.any():
        odd = "as 'time_format' says" if time_format else "seconds to nanoseconds since 1970, YYYYMMDD, ISO 8601"
        cure = f"time_format says how they are written, as in {_EXAMPLES}"
        if not cleaning.lenient:
            likely = likely_formats(canonical_text(spelled, "time"))
            # A format is for all times: one that reads fewer than are read now is no cure.
            if likely.formats and likely.read > times.filter(~without).head(likely.of).count():
                cure = f"add to the source: {likely.words()}"
        cleaning.warn(f"times that are not {odd} are left out; {cure}")
    frame = cleaning.keep(frame, pl.lit(~impossible), otherwise=IMPOSSIBLE_TIME)
    if frame["time"].count():
        first, last = int(frame["time"].min()), int(frame["time"].max())  # type: ignore[arg-type]
        cleaning.times = (first, last)
        if last < PLAUSIBLE_FROM:
            cleaning.warn(f"times end in {day(last)}, before 1990, which is hardly meant: {_cure(first, last)}")
    return frame


def day(seconds: int) -> str:
    """The day of a time, for people.

    >>> day(86_400)
    '1970-01-02'
    """
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d}"


def _cure(first: int, last: int) -> str:
    if first >= 1900 and last <= 2100:
        return 'if they are years: time_format = "%Y"'
    if first >= 20_000 and last <= 80_000:
        return 'if a spreadsheet wrote them: time_format = "excel"'
    return f"time_format says how they are written, as in {_EXAMPLES}"


def _unweighed(frame: pl.DataFrame, cleaning: Cleaning) -> pl.DataFrame:
    """The frame without its events; several kinds of them are a warning, since a refund then counts as a purchase does."""
    if "event" not in frame.columns:
        return frame
    counts = frame["event"].drop_nulls().value_counts(name="rows").sort(["rows", "event"], descending=[True, False])
    if 1 < counts.height <= _MOST_EVENTS:
        named = ", ".join(f"{event!r} ({rows:,} rows)" for event, rows in counts.head(_SHOWN).iter_rows())
        line = ", ".join(f"{json.dumps(event)} = 1.0" for event in counts["event"].head(_SHOWN))
        cleaning.warn(f"events have no weights, so every row counts as liked: {named}; events = {{ {line} }} gives each its own")
    return frame.drop("event")


def _weights(events: pl.Series, declared: Mapping[str, float], cleaning: Cleaning) -> dict[str, float]:
    """Event, as rows spell it -> weight. A spelling in other letters, capital or small, counts where no other event is meant."""
    spelled = as_ids(pl.Series(list(declared), dtype=pl.String), cleaning.rules).to_list()
    known = {name or given: weight for name, (given, weight) in zip(spelled, declared.items(), strict=True)}
    folded = Counter(name.casefold() for name in known)
    alike = {name.casefold(): weight for name, weight in known.items() if folded[name.casefold()] == 1}
    counts = events.value_counts(name="rows").sort(["rows", events.name], descending=[True, False])
    found = [
        EventCount(event=event, rows=rows, weight=known.get(event, alike.get(event.casefold())))
        for event, rows in counts.iter_rows()
    ]
    cleaning.events = found
    without = [one for one in found if one.weight is None]
    if without:
        named = ", ".join(f"{one.event!r} ({one.rows:,} rows)" for one in without[:_SHOWN])
        more = ", ..." if without[_SHOWN:] else ""
        cure = f"events = {{ {json.dumps(without[0].event)} = 1.0 }} gives one a weight, 0 says that it has none"
        cleaning.warn(f"events without a weight say nothing: {named}{more}; {cure}")
    return {one.event: one.weight for one in found if one.weight is not None}


def _valued(frame: pl.DataFrame, decimal: str, cleaning: Cleaning) -> pl.DataFrame:
    frame = cleaning.keep(frame, pl.col("value").is_not_null(), otherwise="missing value")
    texts = canonical_text(frame["value"], "text")
    frame = frame.with_columns(as_numbers(texts, decimal=decimal).alias("value"))
    unread = texts.filter(frame["value"].is_null())
    frame = cleaning.keep(frame, pl.col("value").is_not_null(), otherwise="unparsable value")
    if len(unread):
        commas = decimal == "." and unread.str.contains(r"^\s*[-+]?[\d.]*\d,\d+\s*$").any()
        cure = "decimal = ',' where they are written with a decimal comma" if commas else "export them as numbers"
        cleaning.warn(f"values that are no numbers are left out; {cure}")
    return cleaning.keep(frame, pl.col("value").is_finite(), otherwise="value not finite")
