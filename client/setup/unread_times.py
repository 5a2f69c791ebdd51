"""A column of events that is not read and looks like their time, under a name that nobody could know.

Only for a person at `fedfuse check`: what is read of a source is what its platform file names, and no row decides it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import polars as pl

from client.config.source_schema import InteractionsSource, ReviewsSource, Source
from client.config.table_location import Column
from client.setup.table_preview import sample_columns
from client.sources.cell_values import PLAUSIBLE_FROM, PLAUSIBLE_UNTIL, as_times
from client.sources.kinds.interactions import TIME_NAMES, day
from client.sources.readers.cells import canonical_text
from client.sources.readers.table_scan import reading
from shared.base.errors import InputError

_MOST = 0.98
"""Share of the rows that must hold such a time."""
_FEWEST, _DISTINCT = 20, 3
"""Rows, and different times among them, from which on a column is judged."""
_DENSE = 0.5
"""Share of the whole numbers between the least and the greatest from which on they are given one after the other."""
_NANOSECONDS = 1e17
"""From this on numbers are ids far more often than times: those of a time end in zeros, for few clocks tell nanoseconds."""


def unread_time(source: Source) -> str:
    """What a person reads of a source of events whose times are not read; '' where no column looks like a time.

    A column looks like a time if nearly all of the first rows hold one between 1990 and 2035, in a form that is read without
    `time_format`, and if it is neither numbered throughout (an order's id) nor the same in all rows of each item or of each user
    (a day of publication, of birth).
    """
    if not isinstance(source, InteractionsSource | ReviewsSource):
        return ""
    try:
        with reading(source.kind):
            columns = sample_columns(source)
    except InputError:
        return ""  # what is named was read: it is in other columns that something is odd, and no time
    owners = [columns[name] for name in (source.column("user"), source.column("item")) if name in columns]
    used = {source.column(role) for role in source.roles if role in source.columns or role in columns} | set(source.further())
    found = time_column({name: cells for name, cells in columns.items() if name not in used}, owners)
    if found is None:
        return ""
    name, times = found
    first, last = day(int(times.min())), day(int(times.max()))  # type: ignore[arg-type]
    rows = f"{len(times):,} rows"
    return (
        f"no column is read as time, and {_called(name)} looks like one ({first} to {last} in the first {rows}); "
        f"if it is: columns = {{ {_line({**source.columns, 'time': name})} }}"
    )


def time_column(columns: Mapping[Column, pl.Series], owners: Sequence[pl.Series]) -> tuple[Column, pl.Series] | None:
    """The column that looks most like times of events, of those whose name does not say so, and its seconds since 1970.

    Args:
        columns: Of the first rows, by name.
        owners: Users and items of these rows.
    """
    found = {
        name: times
        for name, cells in columns.items()
        if str(name).strip().lower() not in _NAMED and (times := _times(cells, owners)) is not None
    }
    return max(found.items(), key=lambda one: one[1].n_unique(), default=None)


_NAMED = {"time", *(name.lower() for name in TIME_NAMES)}
"""Columns that reading the source has spoken of already."""


def _times(cells: pl.Series, owners: Sequence[pl.Series]) -> pl.Series | None:
    """The seconds since 1970 that a column holds, if it looks like times of events."""
    if cells.dtype.is_nested() or cells.dtype in (pl.Binary, pl.Boolean, pl.Null, pl.Duration, pl.Time) or len(cells) < _FEWEST:
        return None
    cells = cells if cells.dtype.is_integer() else canonical_text(cells, "time")
    seconds = as_times(cells, None)
    times = seconds.filter(seconds.is_between(PLAUSIBLE_FROM, PLAUSIBLE_UNTIL, closed="left").fill_null(False))
    if len(times) < _MOST * len(cells) or times.n_unique() < _DISTINCT:
        return None
    numbers = cells.cast(pl.Float64, strict=False).drop_nulls()
    if len(numbers) > len(cells) / 2 and _numbered(numbers):
        return None
    return None if any(_belongs(seconds, owner) for owner in owners) else times


def _numbered(numbers: pl.Series) -> bool:
    """Whether numbers were given one after the other, or have digits where a clock has none."""
    least, greatest = float(numbers.min()), float(numbers.max())  # type: ignore[arg-type]
    if least >= _NANOSECONDS:
        # Multiples of 1000, as exactly as a double holds them: its last bits are below a microsecond.
        return bool((numbers.cast(pl.Int64, strict=False) % 1_000 != 0).any())
    return numbers.n_unique() >= _DENSE * (greatest - least + 1)


def _belongs(times: pl.Series, owner: pl.Series) -> bool:
    """Whether those who have several rows have one time in nearly all of them: it is theirs, and not the event's."""
    pairs = pl.DataFrame({"owner": canonical_text(owner, "id"), "time": times}).drop_nulls()
    several = (
        pairs.group_by("owner").agg(pl.len().alias("rows"), pl.col("time").n_unique().alias("times")).filter(pl.col("rows") > 1)
    )
    return several.height > 0 and int((several["times"] == 1).sum()) >= _MOST * several.height


def _called(name: Column) -> str:
    return f"column {name}" if isinstance(name, int) else f"column '{name}'"


def _line(columns: Mapping[str, object]) -> str:
    """Columns as a platform file names them."""
    return ", ".join(f"{role} = {json.dumps(column, ensure_ascii=False)}" for role, column in columns.items())
