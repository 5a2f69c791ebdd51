"""Columns as numbers, times and texts, each cell by one rule, whatever type their file gave them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

import polars as pl

from client.sources.ids import HIDDEN
from client.sources.readers.cells import canonical_text, each

LONGEST_TEXT = 2000
"""Characters that are kept of one text."""
EARLIEST, LATEST = 0, 4_133_980_800
"""Seconds since 1970: from 1970-01-01 up to, and without, 2101-01-01 (UTC)."""
PLAUSIBLE_FROM, PLAUSIBLE_UNTIL = 631_152_000, 2_082_758_400
"""The same, between which a time of an event is plausible: 1990 up to, and without, 2036."""

_LINK = r"(?i)\bhttps?://\S+"
_INVISIBLE = rf"[{HIDDEN}]"
_FORMATS = (
    *("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M%#z"),
    *("%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y%m%d %H%M%S", "%Y%m%d %H%M%S%#z", "%Y-%m"),
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d %b %Y %H:%M:%S", "%d %b %Y", "%b %d, %Y", "%b %d %Y"),
    *("%a, %d %b %Y %H:%M:%S%#z", "%d %b %Y %H:%M:%S%#z", "%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y"),
)
"""What texts are tried as, in this order; none of two can be meant by one text."""
_TYPED = "%Y-%m-%d %H:%M:%S%.f"
_IS_TYPED = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$"
"""How `client/sources/readers/cells.py` writes what is a date or a time by type."""
UNIX = {"unix": 1.0, "unix-ms": 1e3, "unix-us": 1e6, "unix-ns": 1e9}
"""Time formats that count from 1970: how many in a second."""
EXCEL = "excel"
"""The time format of spreadsheets: days since 1899-12-30."""
_EXCEL_1970 = 25_569
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_YEAR_FIRST = r"^((?:19|20)\d\d(?:0[1-9]|1[0-2])\d{2}(?:\d{4}|\d{6})?)(?:\.0*)?$"


def as_numbers(column: pl.Series, *, decimal: str = ".") -> pl.Series:
    """Numbers as float64, null where there is none; true is 1 and false is 0.

    Args:
        decimal: What is before the decimals. With a point, a comma is one too where it cannot be between thousands: in `4,5`, and
            not in `4,500`. With a comma, points are between thousands.

    >>> as_numbers(pl.Series([" 2.5", "x", None, "True", "4,5", "1,234"])).to_list()
    [2.5, None, None, 1.0, 4.5, None]
    >>> as_numbers(pl.Series(["1.234,5", "1,234"]), decimal=",").to_list()
    [1234.5, 1.234]
    """
    if column.dtype.is_integer() or column.dtype == pl.Float64:
        return column.cast(pl.Float64).fill_nan(None)
    texts = canonical_text(column, "text").str.strip_chars()
    numbers = texts.cast(pl.Float64, strict=False)
    unread = texts.is_not_null() & numbers.is_null()
    if decimal == "," or unread.any():
        others = texts.str.to_lowercase().replace({"true": "1", "false": "0"})
        if decimal == ",":
            commas = others.str.contains(r"^[-+]?\d{1,3}(?:\.?\d{3})*(?:,\d+)?$|^[-+]?\d*,\d+$").fill_null(False)
            plain = others.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            others = plain.zip_with(commas, others)
            unread |= commas
        else:
            others = others.str.replace(r"^([-+]?\d+),(\d{1,2}|\d{4,})$", "$1.$2")
        numbers = others.cast(pl.Float64, strict=False).zip_with(unread, numbers)
    return numbers


def as_times(column: pl.Series, time_format: str | None) -> pl.Series:
    """Times as int64 seconds since 1970 (UTC), null where they cannot be read or are not in 1970 to 2100.

    Args:
        time_format: 'unix', 'unix-ms', 'unix-us', 'unix-ns', 'excel', a strptime format, or None. None reads each cell by itself:
            a number of 8, 12 or 14 digits that begins as a date does is one (`20191001`); of other numbers the size says whether
            they are seconds, milliseconds, microseconds or nanoseconds since 1970; texts are ISO 8601, with or without a zone,
            or one of some forms that can mean one thing alone. What a file or a database holds as a time is taken as it is.

    >>> as_times(pl.Series(["86400", "1970-01-02", "1969-12-31", "soon", "86400000000", "19700102"]), None).to_list()
    [86400, 86400, None, None, None, 86400]
    >>> as_times(pl.Series(["1588687728923", "2020-05-05 14:08:48 UTC", "2020-05-05T16:08:48+02:00"]), None).to_list()
    [1588687728, 1588687728, 1588687728]
    """
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_unit != "ns":
        if column.dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return _possible(column.dt.epoch("s").cast(pl.Float64))
    if time_format is None and column.dtype.is_integer():
        numbers = column.cast(pl.Float64)
        dated = pl.Series([False]).new_from_index(0, len(column))
        for digits in _DIGITS:
            dated |= ((numbers >= 19 * 10.0 ** (digits - 2)) & (numbers < 21 * 10.0 ** (digits - 2))).fill_null(False)
        seconds = _possible(_since_1970(numbers))
        if dated.any():
            seconds = seconds.scatter(dated.arg_true(), as_times(column.filter(dated).cast(pl.String), None))
        return seconds
    texts = canonical_text(column, "time").str.strip_chars()
    if time_format is None:
        seconds = _since_1970(as_numbers(texts))
        dates = texts.str.extract(_YEAR_FIRST)
        if dates.count():
            found = _first(dates, _DIGITS.values())
            seconds = found.zip_with(found.is_not_null(), seconds)
        seconds = seconds.zip_with(as_numbers(texts).is_not_null(), _first(_iso(texts), _FORMATS))
    elif time_format in UNIX:
        seconds = as_numbers(texts) / UNIX[time_format]
    elif time_format == EXCEL:
        seconds = ((as_numbers(texts) - _EXCEL_1970) * 86_400).round(3)
    else:
        seconds = _parsed(*_whole_day(texts, time_format))
    typed = texts.set(~texts.str.contains(_IS_TYPED).fill_null(False), None)
    if typed.count():
        seconds = seconds.zip_with(seconds.is_not_null(), _parsed(typed, _TYPED))
    return _possible(seconds)


def _possible(seconds: pl.Series) -> pl.Series:
    """Whole seconds from 1970 to 2100; null where there are none."""
    possible = seconds.is_finite() & (seconds >= EARLIEST) & (seconds < LATEST)
    return seconds.set(~possible.fill_null(False), None).floor().cast(pl.Int64)


def _since_1970(numbers: pl.Series) -> pl.Series:
    """Seconds of what counts from 1970 in seconds, ms, us or ns: of the four, dates from 1973 to 2100 have one at most."""
    for size in (1e3, 1e6, 1e9):
        bigger = ((numbers >= 1e8 * size) & (numbers < LATEST * size)).fill_null(False)
        if bigger.any():
            numbers = (numbers / size).zip_with(bigger, numbers)
    return numbers


def _whole_day(texts: pl.Series, time_format: str) -> tuple[pl.Series, str]:
    """A format without a day, or without a month, is the beginning of it."""
    if re.search(r"%[-_0]?[dejDFxcvs+]", time_format):
        return texts, time_format
    if re.search(r"%[-_0]?[mbBh]", time_format):
        return texts + " 01", time_format + " %d"
    return texts + " 01 01", time_format + " %m %d"


def as_texts(column: pl.Series, *, longest: int = LONGEST_TEXT) -> pl.Series:
    """Texts as a person reads them: entities decoded, links and control characters out, spaces single; null if empty.

    A whole number loses its '.0', as in `as_ids`: a gap in another row may have made a float of it.

    >>> as_texts(pl.Series(["Angels &amp; Demons\\t ", "see http://x.y/z ", None, "5.0"])).to_list()
    ['Angels & Demons', 'see', None, '5']
    """
    texts = canonical_text(column, "text").str.head(8 * longest)
    entities = texts.str.contains("&", literal=True).fill_null(False)
    if entities.any():
        decoded = pl.Series(each(html.unescape, texts.filter(entities).to_list()), dtype=pl.String)
        texts = texts.scatter(entities.arg_true(), decoded)
    texts = texts.str.replace_all(_INVISIBLE, "").str.replace_all(_LINK, " ").str.replace_all(r"[\p{Cc}\s]+", " ")
    texts = texts.str.strip_chars().str.head(longest).str.strip_chars_end().str.replace(r"^(-?\d+)\.0$", "$1")
    return texts.set(texts == "", None)


def _iso(texts: pl.Series) -> pl.Series:
    """ISO 8601 in one spelling: a space for the T, a zone in digits right behind."""
    texts = texts.str.replace(r"^(\d{4}-?\d\d-?\d\d)[Tt_]", "$1 ").str.replace(r"(?i)\s*(?:Z|UTC|GMT)$", "+00:00")
    return texts.str.replace(r"(\d)\s+([+-]\d\d(?::?\d\d)?)$", "$1$2").str.replace(r"(:\d\d),(\d+)", "$1.$2")


def _first(texts: pl.Series, formats: Iterable[str]) -> pl.Series:
    """Seconds by the first format that fits a text."""
    seconds = pl.Series([None], dtype=pl.Float64).new_from_index(0, len(texts))
    for time_format in formats:
        left = texts.is_not_null() & seconds.is_null()
        if not left.any():
            break
        seconds = seconds.scatter(left.arg_true(), _parsed(*_whole_day(texts.filter(left), time_format)))
    return seconds


def _parsed(texts: pl.Series, time_format: str) -> pl.Series:
    zoned = "%z" in time_format or "%#z" in time_format or "%:z" in time_format
    kind = pl.Datetime("us", "UTC") if zoned else pl.Datetime("us")
    return texts.str.strptime(kind, time_format, strict=False).dt.epoch("s").cast(pl.Float64)
