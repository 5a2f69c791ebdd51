"""Columns as ids, numbers, times and texts, each cell by one rule, whatever type their file gave them."""

from __future__ import annotations

import html

import polars as pl

from client.sources.readers.cells import UNUSABLE, canonical_text, each

LONGEST_TEXT = 2000
"""Characters that are kept of one text."""
EARLIEST, LATEST = 0, 4_133_980_800
"""Seconds since 1970: from 1970-01-01 up to, and without, 2101-01-01 (UTC)."""

_LINK = r"(?i)\bhttps?://\S+"
# Soft hyphens, zero-width spaces, direction marks; the joiners stay, for some scripts are spelled with them.
_INVISIBLE = r"[\u{AD}\u{200B}\u{200E}\u{200F}\u{202A}-\u{202E}\u{2060}-\u{2069}\u{FEFF}]"
_DATES = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d")
_TYPED = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$"
"""How `client/sources/readers/cells.py` writes what is a date or a time by type."""
_ZONED = "%Y-%m-%d %H:%M:%S%.f%#z"


def as_ids(column: pl.Series) -> pl.Series:
    """Ids as stripped strings, null where missing or no id; each cell by one rule, whatever the others hold.

    A whole number loses its '.0', for that is how a column of integers with gaps is written out by others.

    >>> as_ids(pl.Series([1.0, None, 7.0])).to_list(), as_ids(pl.Series([" 1.0", "guest", "2.50"])).to_list()
    (['1', None, '7'], ['1', 'guest', '2.50'])
    """
    ids = canonical_text(column, "id").str.strip_chars()
    ids = ids.set(((ids == "") | ids.str.starts_with(UNUSABLE)).fill_null(False), None)
    return ids.str.replace(r"^(-?\d+)\.0+$", "$1")


def as_numbers(column: pl.Series) -> pl.Series:
    """Numbers as float64, null where there is none; true is 1 and false is 0.

    >>> as_numbers(pl.Series([" 2.5", "x", None, "true"])).to_list()
    [2.5, None, None, 1.0]
    """
    texts = canonical_text(column, "text").str.strip_chars()
    texts = texts.set((texts.str.to_lowercase() == "true").fill_null(False), "1")
    return texts.set((texts.str.to_lowercase() == "false").fill_null(False), "0").cast(pl.Float64, strict=False)


def as_times(column: pl.Series, time_format: str | None) -> pl.Series:
    """Times as int64 seconds since 1970 (UTC), null where they cannot be read or are not in 1970 to 2100.

    Args:
        time_format: 'unix', 'unix-ms', a strptime format, or None: numbers are unix seconds, texts are ISO 8601. What a file
            or a database holds as a time is taken as it is.

    >>> as_times(pl.Series(["86400", "1970-01-02", "1969-12-31", "soon"]), None).to_list()
    [86400, 86400, None, None]
    """
    texts = canonical_text(column, "time").str.strip_chars()
    if time_format in (None, "unix", "unix-ms"):
        seconds = as_numbers(texts)
        if time_format == "unix-ms":
            seconds = seconds / 1000
        elif time_format is None:
            seconds = seconds.zip_with(seconds.is_not_null(), _iso(texts))
    else:
        seconds = _parsed(texts, time_format or "")
    typed = texts.set(~texts.str.contains(_TYPED).fill_null(False), None)
    seconds = seconds.zip_with(seconds.is_not_null(), _parsed(typed, _DATES[0]))
    possible = seconds.is_finite() & (seconds >= EARLIEST) & (seconds < LATEST)
    return seconds.set(~possible.fill_null(False), None).floor().cast(pl.Int64)


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
    texts = texts.str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ").str.replace(r"Z$", "+00:00")
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
