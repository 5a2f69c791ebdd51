"""Columns as ids, numbers, times and texts, whatever type their file gave them."""

from __future__ import annotations

import html

import polars as pl

LONGEST_TEXT = 2000
"""Characters that are kept of one text."""
EARLIEST, LATEST = 0, 4_133_980_800
"""Seconds since 1970: from 1970-01-01 up to, and without, 2101-01-01 (UTC)."""

_LINK = r"(?i)\bhttps?://\S+"
# Soft hyphens, zero-width spaces, direction marks; the joiners stay, for some scripts are spelled with them.
_INVISIBLE = r"[\u{AD}\u{200B}\u{200E}\u{200F}\u{202A}-\u{202E}\u{2060}-\u{2069}\u{FEFF}]"
_DATES = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d")
_ZONED = "%Y-%m-%d %H:%M:%S%.f%#z"


def as_ids(column: pl.Series) -> pl.Series:
    """Ids as stripped strings, null where missing.

    Numbers that a float column holds lose their '.0', and so do strings if all of them end in it: that is how a
    column of integers with gaps is written out by others.

    >>> as_ids(pl.Series([1.0, None, 7.0])).to_list(), as_ids(pl.Series([" 1.0", "7.0"])).to_list()
    (['1', None, '7'], ['1', '7'])
    >>> as_ids(pl.Series(["1.0", "b"])).to_list()
    ['1.0', 'b']
    """
    ids = _as_strings(column).str.strip_chars()
    ids = ids.set(ids == "", None)
    whole = ids.str.contains(r"^-?\d+\.0+$")
    return ids.str.replace(r"\.0+$", "") if len(ids) and whole.any() and whole.all() else ids


def as_numbers(column: pl.Series) -> pl.Series:
    """Numbers as float64, null where there is none.

    >>> as_numbers(pl.Series([" 2.5", "x", None])).to_list()
    [2.5, None, None]
    """
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        return column.cast(pl.Float64)
    return _as_strings(column).str.strip_chars().cast(pl.Float64, strict=False)


def as_times(column: pl.Series, time_format: str | None) -> pl.Series:
    """Times as int64 seconds since 1970 (UTC), null where they cannot be read or are not in 1970 to 2100.

    Args:
        time_format: 'unix', 'unix-ms', a strptime format, or None: numbers are unix seconds, texts are ISO 8601.

    >>> as_times(pl.Series(["86400", "1970-01-02", "1969-12-31", "soon"]), None).to_list()
    [86400, 86400, None, None]
    """
    if isinstance(column.dtype, pl.Date | pl.Datetime):
        seconds = column.cast(pl.Datetime("us"), strict=False).dt.epoch("s").cast(pl.Float64)
    elif time_format in (None, "unix", "unix-ms"):
        seconds = as_numbers(column)
        if time_format == "unix-ms":
            seconds = seconds / 1000
        elif time_format is None and not column.dtype.is_numeric():
            seconds = seconds.zip_with(seconds.is_not_null(), _iso(_as_strings(column)))
    else:
        seconds = _parsed(_as_strings(column).str.strip_chars(), time_format or "")
    possible = seconds.is_finite() & (seconds >= EARLIEST) & (seconds < LATEST)
    return seconds.set(~possible.fill_null(False), None).floor().cast(pl.Int64)


def as_texts(column: pl.Series, *, longest: int = LONGEST_TEXT) -> pl.Series:
    """Texts as a person reads them: entities decoded, links and control characters out, spaces single; null if empty.

    >>> as_texts(pl.Series(["Angels &amp; Demons\\t ", "see http://x.y/z ", None])).to_list()
    ['Angels & Demons', 'see', None]
    """
    texts = _as_strings(column).str.head(8 * longest)
    entities = texts.str.contains("&", literal=True).fill_null(False)
    if entities.any():
        decoded = pl.Series([html.unescape(text) for text in texts.filter(entities)], dtype=pl.String)
        texts = texts.scatter(entities.arg_true(), decoded)
    texts = texts.str.replace_all(_INVISIBLE, "").str.replace_all(_LINK, " ").str.replace_all(r"[\p{Cc}\s]+", " ")
    texts = texts.str.strip_chars().str.head(longest).str.strip_chars_end()
    return texts.set(texts == "", None)


def _as_strings(column: pl.Series) -> pl.Series:
    kind = column.dtype
    if kind == pl.String:
        return column
    if kind.is_float() or kind.is_decimal():
        numbers = column.cast(pl.Float64)
        numbers = numbers.set(~numbers.is_finite().fill_null(True), None)
        whole = (numbers == numbers.floor()) & (numbers.abs() < 2**53)
        return numbers.cast(pl.Int64, strict=False).cast(pl.String).zip_with(whole.fill_null(False), numbers.cast(pl.String))
    if kind == pl.Binary:
        return pl.Series(
            column.name, [None if cell is None else cell.decode("utf-8", "replace") for cell in column], dtype=pl.String
        )
    if isinstance(kind, pl.List | pl.Array):
        parts = column.cast(pl.List(pl.String))
        return parts.list.drop_nulls().list.join(", ")
    if isinstance(kind, pl.Struct | pl.Object):
        return pl.Series(column.name, [None if cell is None else str(cell) for cell in column], dtype=pl.String)
    return column.cast(pl.String)


def _iso(texts: pl.Series) -> pl.Series:
    texts = texts.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ").str.replace(r"Z$", "+00:00")
    seconds = _parsed(texts, _ZONED)
    for time_format in _DATES:
        if seconds.null_count() == texts.null_count():
            break
        seconds = seconds.zip_with(seconds.is_not_null(), _parsed(texts, time_format))
    return seconds


def _parsed(texts: pl.Series, time_format: str) -> pl.Series:
    zoned = "%z" in time_format or "%#z" in time_format or "%:z" in time_format
    kind = pl.Datetime("us", "UTC") if zoned else pl.Datetime("us")
    return texts.str.strptime(kind, time_format, strict=False).dt.epoch("s").cast(pl.Float64)
