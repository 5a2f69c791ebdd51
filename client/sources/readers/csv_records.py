"""Lines of quoted text to records (RFC 4180), so that a quotation mark out of place spoils its own record and no other.

A line that is well formed by itself is a record by itself. Of the others each is read as leniently as Python's reader does, by
itself, unless it opens a mark that it does not close: then it goes on over the lines that follow up to the first at which all of
it is well formed. If there is none, the line alone is a broken row, and the next one begins a record again.

In a file that a CSV writer wrote, this is exact. Where marks are not doubled within quoted text, one row's open mark and
another's odd one may still look like a quoted text of several lines; `line_breaks = false` says that a row is a line, and
then no row can reach another whatever it holds.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

BROKEN = "broken row: a quotation mark is not closed"
_BACKSLASH = "\\"
_MOST_LINES = 1000
"""Lines of one record; whatever goes on for longer is an open mark."""
_MOST_CHARACTERS = 1 << 20
csv.field_size_limit(max(csv.field_size_limit(), _MOST_CHARACTERS))


@dataclass(frozen=True, kw_only=True)
class Records:
    """The records of a file; `plain_at` and `others_at` say which line each begins on.

    Args:
        plain: Lines that are well formed by themselves.
        others: The cells of every other record.
        flaws: Per one of `others` why it is unusable, or None.
    """

    plain: Sequence[str]
    plain_at: Sequence[int]
    others: Sequence[Sequence[str]]
    others_at: Sequence[int]
    flaws: Sequence[str | None]


def records(lines: Sequence[str], separator: str, quote: str, *, header: bool, line_breaks: bool, escape: str = "") -> Records:
    """The records of these lines, without the header.

    Args:
        escape: The character that takes the meaning of the one behind it; '' where there is none. Then a line that is well formed
            only with a backslash before its marks is read so.

    >>> found = records(['a,b', '1,"x', 'y"', '2,"z', '3,w', ''], ",", '"', header=True, line_breaks=True)
    >>> found.plain, found.others, found.flaws == [None, BROKEN]
    (['3,w'], [['1', 'x\\ny'], ['2', 'z']], True)
    """
    lines = unescaped(lines, quote, escape)
    ends = len(lines) - (bool(lines) and lines[-1] == "")
    bare = pl.Series(lines[:ends], dtype=pl.String).str.strip_suffix("\r")
    plain = (
        bare.str.contains(_well_formed(separator, quote))
        if quote
        else pl.Series([True], dtype=pl.Boolean).new_from_index(0, ends)
    )
    taken = [False] * ends
    others: list[list[str]] = []
    others_at: list[int] = []
    flaws: list[str | None] = []
    following = 0
    odd = (~plain).arg_true().to_list()
    start = 0
    if header:
        start = 1 + (_closing(lines, 0, ends, separator, quote) if not plain[0] else 0)
        taken[:start] = [True] * start
        following = start
    for at in odd:
        if at < following:
            continue
        line = lines[at].removesuffix("\r")
        following = at + 1
        flaw = None
        row = _escaped(line, separator, quote) if not escape else None
        if row is not None:
            taken[at] = True
            others.append(row)
            others_at.append(at)
            flaws.append(None)
            continue
        row = _lenient(line, separator, quote)
        if row is None or _open(lines[at].removesuffix("\r"), separator, quote):
            more = _closing(lines, at, ends, separator, quote) if line_breaks and row is not None else 0
            flaw = None if more else BROKEN
            if more:
                following = at + 1 + more
                row = _strict("\n".join(lines[at:following]).removesuffix("\r"), separator, quote)
        taken[at:following] = [True] * (following - at)
        others.append(row or [])
        others_at.append(at)
        flaws.append(flaw)
    kept = [at for at, gone in enumerate(taken) if not gone]
    return Records(plain=bare.gather(kept).to_list(), plain_at=kept, others=others, others_at=others_at, flaws=flaws)


def unescaped(lines: Sequence[str], quote: str, escape: str) -> list[str]:
    r"""The lines with marks doubled that the escape character preceded, each by itself.

    >>> unescaped([r"|a \|b\||"], "|", "\\")
    ['|a ||b|||']
    """
    if not escape or not quote:
        return list(lines)
    pattern = re.compile(f"{re.escape(escape)}({re.escape(escape)}|{re.escape(quote)})")

    def plain(match: re.Match[str]) -> str:
        return escape if match.group(1) == escape else quote + quote

    return [pattern.sub(plain, line) if escape in line else line for line in lines]


def _escaped(line: str, separator: str, quote: str) -> list[str] | None:
    """The cells of a line that is well formed if backslashes escape its quotation marks; None where it is not."""
    if _BACKSLASH in (quote, separator) or _BACKSLASH + quote not in line:
        return None
    (plain,) = unescaped([line], quote, _BACKSLASH)
    return _strict(plain, separator, quote) if re.search(_well_formed(separator, quote), plain) else None


def header_of(lines: Sequence[str], separator: str, quote: str) -> list[str]:
    """The cells of the first record."""
    if not quote:
        return lines[0].removesuffix("\r").split(separator)
    more = _closing(lines, 0, len(lines), separator, quote)
    text = "\n".join(lines[: 1 + more]).removesuffix("\r")
    return (_strict(text, separator, quote) if more else _lenient(text, separator, quote)) or [""]


def _well_formed(separator: str, quote: str) -> str:
    """A pattern of lines whose cells are quoted as a whole, with marks within doubled, or have no mark."""
    mark, cut = re.escape(quote), re.escape(separator)
    no_mark, no_cut = in_class(quote), in_class(separator)
    cell = f"(?:[^{no_mark}{no_cut}]*|{mark}(?:[^{no_mark}]|{mark}{mark})*{mark})"
    return f"^{cell}(?:{cut}{cell})*$"


def in_class(character: str) -> str:
    """The character as a class of a pattern has it."""
    return "\\" + character if character in r"\^]-[&~" else character


def _closing(lines: Sequence[str], at: int, ends: int, separator: str, quote: str) -> int:
    """How many further lines the record that begins at `at` takes; 0 where it ends there, or is never well formed."""
    if not quote or not _open(lines[at].removesuffix("\r"), separator, quote):
        return 0
    marks, length = lines[at].count(quote), len(lines[at])
    for more in range(1, min(_MOST_LINES, ends - at)):
        line = lines[at + more]
        marks, length = marks + line.count(quote), length + len(line)
        if length > _MOST_CHARACTERS:
            return 0
        # In a well-formed record marks come in pairs.
        if quote in line and marks % 2 == 0:
            text = "\n".join(lines[at : at + more + 1]).removesuffix("\r")
            if _strict(text, separator, quote) is not None:
                return more
            if not _open(text, separator, quote):
                return 0
    return 0


def _strict(text: str, separator: str, quote: str) -> list[str] | None:
    """The cells of one well-formed record; None if it is none, or more than one."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, quotechar=quote, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _lenient(line: str, separator: str, quote: str) -> list[str] | None:
    try:
        return next(csv.reader([line], delimiter=separator, quotechar=quote), [])
    except csv.Error:
        return None


def _open(text: str, separator: str, quote: str) -> bool:
    """Whether a text ends within a quoted cell."""
    if not text.count(quote) % 2:
        return False
    try:
        list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, quotechar=quote, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False
