"""Delimited text: any separator, any encoding, with or without header, quotes and equally long rows.

UTF-8 with a separator of one byte is scanned by polars, lazily and in parallel; anything else is decoded first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl
from polars.exceptions import PanicException, PolarsError

from client.reading import Reading
from client.sources.scan import FLAW, Scan, reading
from shared.errors import InputError

RAGGED = "row with more columns than the first"
BROKEN = "broken row"
_OVERFLOW = "overflow"
# Characters that stand for a separator of several bytes, if the file does not use them itself.
_STAND_INS = "\x1f\x1e\x1d\x1c\x01\x02\x03\x04"
_LONGEST_HEADER = 1 << 20


def open_delimited(path: Path, how: Reading) -> Scan:
    """The file as a table; its first row says how many columns there are.

    Raises:
        InputError: it cannot be opened, or does not begin with a row.
    """
    where = str(path)
    with reading(where):
        source, separator, quote = _prepared(path, how)
        first = _first_row(source, separator, quote, where)
        names = [name.strip() for name in first] if how.header else [str(position) for position in range(1, len(first) + 1)]
        table = _Table(
            source=source, separator=separator, quote=quote, width=len(first), header=how.header, ragged=how.ragged, where=where
        )
    return Scan(where=where, names=names, named=how.header, take=table.take, decoded=True)


class _Table:
    def __init__(
        self, *, source: Path | bytes, separator: str, quote: str, width: int, header: bool, ragged: bool, where: str
    ) -> None:
        self._source, self._separator, self._quote, self._width = source, separator, quote, width
        self._header, self._ragged, self._where = header, ragged, where

    def take(self, positions: Sequence[int]) -> pl.DataFrame:
        try:
            return self._scan(positions)
        except (PolarsError, PanicException):
            if not self._quote:
                raise
            # polars refuses quotation marks that do not follow the rules; Python's reader knows what was meant.
            return self._patient(positions)

    def _scan(self, positions: Sequence[int]) -> pl.DataFrame:
        # One column more than the first row has: where it is filled, the row is too long.
        names = [*(str(position) for position in range(self._width)), _OVERFLOW]
        frame = pl.scan_csv(
            self._source,
            has_header=False,
            skip_rows=int(self._header),
            separator=self._separator,
            quote_char=self._quote or None,
            schema=dict.fromkeys(names, pl.String),
            missing_columns="insert",
            extra_columns="ignore",
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
            glob=False,
            raise_if_empty=False,
        )
        too_long = pl.lit(None, pl.String) if self._ragged else pl.when(pl.col(_OVERFLOW).is_not_null()).then(pl.lit(RAGGED))
        return frame.select(*(pl.col(str(position)) for position in positions), too_long.alias(FLAW)).collect(engine="streaming")

    def _patient(self, positions: Sequence[int]) -> pl.DataFrame:
        text = self._source.read_bytes() if isinstance(self._source, Path) else self._source
        lines = io.StringIO(text.decode("utf-8-sig", "replace"), newline="").readlines()
        columns: list[list[str | None]] = [[] for _ in positions]
        flaws: list[str | None] = []
        for number, (start, row) in enumerate(_records(lines, self._separator, self._quote)):
            if number < int(self._header):
                continue
            flaw = RAGGED if not self._ragged and any(row[self._width :]) else None
            if start is not None:
                flaw = BROKEN
                if start < len(lines) - 1:
                    do = "close it, double the marks within the text, or set quote = '' if the file does not quote"
                    raise InputError(f"the quotation mark opened in line {start + 1} is never closed", where=self._where, do=do)
            flaws.append(flaw)
            for column, position in zip(columns, positions, strict=True):
                column.append(row[position] or None if position < len(row) else None)
        filled = [pl.Series(str(position), column, dtype=pl.String) for position, column in zip(positions, columns, strict=True)]
        return pl.DataFrame([*filled, pl.Series(FLAW, flaws, dtype=pl.String)])


def _prepared(path: Path, how: Reading) -> tuple[Path | bytes, str, str]:
    """What polars can scan: the file itself, or its text as UTF-8 with a separator of one byte; separator and quote."""
    separator = how.separator_of(path)
    single = len(separator.encode()) == 1
    if single and how.encoding.lower().replace("_", "-") in ("utf-8", "utf8", "utf-8-sig", "ascii", "us-ascii"):
        return path, separator, how.quote
    text = path.read_bytes().decode(how.encoding, "replace").removeprefix("\ufeff")
    if single:
        return text.encode("utf-8", "replace"), separator, how.quote
    stand_in = next((character for character in _STAND_INS if character not in text), None)
    if stand_in is None:
        found = f"control characters in the file leave none to stand for the separator {separator!r}"
        raise InputError(found, where=str(path), do="remove them, or use a separator of one character")
    # Within quotation marks the replacement would be wrong, so files with such separators are read unquoted.
    return text.replace(separator, stand_in).encode("utf-8", "replace"), stand_in, ""


def _first_row(source: Path | bytes, separator: str, quote: str, where: str) -> list[str]:
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(_LONGEST_HEADER)
    text = source[:_LONGEST_HEADER].decode("utf-8-sig", "replace")
    row = next((row for _, row in _records(io.StringIO(text, newline=""), separator, quote)), None)
    if row is None:
        raise InputError("the file is empty", where=where, do="check 'path' in the platform file")
    if not any(row):
        raise InputError(
            "the file begins with an empty line", where=where, do="remove it: the first line says how many columns there are"
        )
    return row


def _records(lines: Iterable[str], separator: str, quote: str) -> Iterator[tuple[int | None, list[str]]]:
    """The rows; with each, the line (from 0) where it starts if its quotation mark is never closed, else None."""
    if not quote:
        yield from ((None, line.rstrip("\r\n").split(separator)) for line in lines)
        return
    held: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines:
            held.append(line)
            yield line

    rows = csv.reader(remembered(), delimiter=separator, quotechar=quote)
    start = 0
    for row in rows:
        yield (start if _open("".join(held), separator, quote) else None), row
        start = rows.line_num
        held.clear()


def _open(text: str, separator: str, quote: str) -> bool:
    if not text.count(quote) % 2:
        return False
    try:
        next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, quotechar=quote, strict=True))
    except csv.Error as error:
        return "end of data" in str(error)
    return False
