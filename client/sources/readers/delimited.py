"""Delimited text: any separator, any encoding, with or without header, quotes and equally long rows.

What a row says depends on that row alone. UTF-8 without a quotation mark is scanned by polars, lazily and in parallel. Text with
quotation marks is cut into records first (`client/sources/readers/csv_records.py`), so that a mark out of place spoils its own
row and no other.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import polars as pl

from client.config.table_location import Reading
from client.sources.readers.csv_records import header_of, in_class, records, unescaped
from client.sources.readers.file_bytes import bytes_of, is_compressed
from client.sources.readers.foreign_bytes import require_text
from client.sources.readers.table_scan import Key, Portion, Scan, reading
from client.sources.readers.text_encoding import by_line, lines_of
from shared.base.errors import InputError

REMARK = "#"
"""What a line before the header begins with that is none."""
_EXCEL = re.compile(r'"?sep=(.)"?\r?')
RAGGED = "row with more columns than the first"
JOINED = "several rows in one line, between carriage returns alone"
_OVERFLOW = "overflow"
_RETURN = r"\r+[^\r\n]"
"""A carriage return within a line."""
_NO_SEPARATOR = "\x1e"
_COMPRESSED = (b"x\x01", b"x^", b"x\x9c", b"x\xda", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
_LONGEST_HEADER = 1 << 20
_UTF8 = ("utf-8", "utf8", "utf-8-sig", "ascii", "us-ascii")


def open_delimited(path: Path, how: Reading) -> Scan:
    """The file as a table; its header says how many columns there are.

    Without a header the positions that the platform file names are the columns, and `fields` says how many there are at most:
    the first row is a user's, and says nothing of others.

    Raises:
        InputError: it cannot be opened, or does not begin with a header where one is declared.
    """
    where = str(path)
    table = _Table(path, how)
    names: list[str] | None
    with reading(where):
        empty = not path.stat().st_size
        if empty and how.header:
            raise InputError("the file is empty", where=where, do="check 'path' in the platform file")
        if not how.header:
            names = None if how.fields is None else [""] * how.fields
            if empty:  # nobody is there, which is no error
                return Scan(where=where, names=names, take=lambda keys: iter(()), seen=list, decoded=True)
            return Scan(where=where, names=names, take=table.take, seen=table.first, decoded=True)
        require_text(table.head, path, table.encoding)
        names = [name.strip() for name in table.first()]
        if not any(names):
            bytes_of(path)  # a compressed file that is cut off is one without a header, too, and says so here
            do = "remove it: the first line says how many columns there are (comment = '#' leaves out lines that begin so)"
            raise InputError("the file begins with an empty line", where=where, do=do)
    table.width = len(names)
    return Scan(where=where, names=names, take=table.take, decoded=True)


class _Table:
    def __init__(self, path: Path, how: Reading) -> None:
        self._path, self._how = path, how
        self._separator = how.separator_of(path)
        # A separator of several characters is one that no quoting writer knows.
        self._quote = how.quote if len(self._separator.encode()) == 1 else ""
        self._skip = 0
        """Lines before the header."""
        self.width = how.fields

    def first(self) -> list[str]:
        """The cells of the first row."""
        lines = self._lines(self.head)
        if self._how.header:
            # What Excel writes and reads before the header.
            if len(lines) > 1 and (said := _EXCEL.fullmatch(lines[0])):
                self._separator = self._how.separator or said[1]
                del lines[0]
                self._skip += 1
            # Such a line is the export's and no user's; one that holds the separator may be a header.
            while len(lines) > 1 and lines[0].startswith(REMARK) and self._separator not in lines[0]:
                del lines[0]
                self._skip += 1
        return header_of(unescaped(lines, self._quote, self._how.escape), self._separator, self._quote)

    @cached_property
    def head(self) -> bytes:
        """The first bytes, decompressed, with the header among them."""
        head = bytes_of(self._path, _LONGEST_HEADER)
        return _with_line_feeds(head) if self._returns else head

    @cached_property
    def _returns(self) -> bool:
        """Whether lines end in a carriage return alone, too: as declared, else as the header says, which no user wrote."""
        if not by_line(self.encoding):
            return False
        if self._how.carriage_returns is not None or not self._how.header:
            return bool(self._how.carriage_returns)
        head = bytes_of(self._path, _LONGEST_HEADER)
        at = head.find(b"\r")
        return at >= 0 and head[at + 1 : at + 2] != b"\n" and b"\n" not in head[:at] and not head[:at].count(b'"') % 2

    @cached_property
    def _data(self) -> bytes:
        """All bytes of the file as they are read: decompressed, lines ending in a line feed."""
        data = bytes_of(self._path)
        return _with_line_feeds(data) if self._returns else data

    @cached_property
    def _as_it_is(self) -> bool:
        """Whether the file can be scanned in its place."""
        return not is_compressed(self._path) and not self._returns

    def _lines(self, data: bytes) -> list[str]:
        lines = lines_of(data, self.encoding)
        if self._how.carriage_returns and not by_line(self.encoding):
            lines = [row for line in lines for row in line.removesuffix("\r").split("\r")]
        if self._how.comment is not None:
            lines = [line for line in lines if not line.startswith(self._how.comment)]
        return lines

    def take(self, keys: Sequence[Key]) -> Iterator[Portion]:
        positions = [int(key) for key in keys]
        width = self.width or max(positions, default=-1) + 1
        frame = self._frame(positions, width)
        flaws = frame["flaw"]
        longer = frame[_OVERFLOW].is_not_null()
        if self.width == 1 or (self.width is not None and longer.any()):
            # Where a carriage return ended a row, it is in what would be that row's last cell.
            last = self._frame([width - 1], width)[str(width - 1)]
            joined = self._with_returns(last) & (longer | (width == 1))
            flawed = joined if self._how.ragged else joined | longer
            flaws = flaws.zip_with(flaws.is_not_null() | ~flawed, _all(RAGGED, frame.height).set(joined, JOINED))
        yield Portion(columns={position: frame[str(position)] for position in positions}, flaws=flaws)

    @property
    def encoding(self) -> str:
        """The declared encoding; `utf-8` for its other names, and for ASCII."""
        named = self._how.encoding.lower().replace("_", "-")
        return "utf-8" if named in _UTF8 else self._how.encoding

    def _with_returns(self, cells: pl.Series) -> pl.Series:
        """Which cells hold a carriage return that may end a row; none where the platform file has spoken."""
        if self._how.carriage_returns is not None:
            return _all(False, len(cells))
        return cells.str.contains(_RETURN).fill_null(False)

    def _frame(self, positions: Sequence[int], width: int) -> pl.DataFrame:
        """The cells of these positions, `overflow`: the first cell too many, and `flaw`: why a row is broken; in order."""
        names = {position: str(position) for position in positions} | {width: _OVERFLOW}
        single = len(self._separator.encode()) == 1
        skip = self._skip + int(self._how.header)
        plain = single and self.encoding == "utf-8" and self._how.comment is None and not self._how.escape
        if plain and not self._quoted():
            source = self._path if self._as_it_is else self._data
            frame = _scanned(source, self._separator, None, width, names, skip=skip)
            if not self._unknown_ends:
                return frame
            whole = _scanned(source, _NO_SEPARATOR, None, 1, {0: "line", 1: _OVERFLOW}, skip=skip)["line"]
            return frame.with_columns(flaw=_all(None, frame.height).set(self._with_returns(whole), JOINED))
        lines = self._lines(self._data)[self._skip :]
        if single:
            return self._recorded(lines, width, names)
        lines = lines[int(self._how.header) : len(lines) - (lines[-1] == "")]
        bare = pl.Series([line.removesuffix("\r") for line in lines], dtype=pl.String)
        cells = bare.str.split(self._separator)
        columns = [cells.list.get(place, null_on_oob=True).alias(name) for place, name in names.items()]
        flaws = _all(None, len(bare)).alias("flaw")
        if self._unknown_ends:
            flaws = flaws.set(self._with_returns(bare), JOINED)
        return pl.DataFrame([*(_full(column) for column in columns), flaws])

    @cached_property
    def _unknown_ends(self) -> bool:
        """Whether neither a header nor the platform file says how lines end, nor how many columns show that one has two rows."""
        if self.width is not None or self._how.carriage_returns is not None:
            return False
        return _holds(self._path, "\r") if self._as_it_is else b"\r" in self._data

    def _quoted(self) -> bool:
        """Whether a quotation mark is somewhere."""
        if not self._quote:
            return False
        return _holds(self._path, self._quote) if self._as_it_is else self._quote.encode() in self._data

    def _recorded(self, lines: list[str], width: int, names: dict[int, str]) -> pl.DataFrame:
        found = records(
            lines,
            self._separator,
            self._quote,
            header=self._how.header,
            line_breaks=bool(self._how.line_breaks),
            escape=self._how.escape,
        )
        # Every one of these lines is a well-formed row by itself, so none reaches into the next.
        text = "\n".join(found.plain).encode("utf-8", "replace")
        plain = _scanned(text, self._separator, self._quote or None, width, names, skip=0)
        if plain.height != len(found.plain):  # polars passes over an empty last line
            plain = pl.concat([plain, plain.clear(len(found.plain) - plain.height)])
        others = {name: [row[place] if place < len(row) else None for row in found.others] for place, name in names.items()}
        flaws = found.flaws
        if self._unknown_ends:
            unquoted = pl.Series(found.plain, dtype=pl.String)
            if self._quote:
                mark = re.escape(self._quote)
                unquoted = unquoted.str.replace_all(f"{mark}[^{in_class(self._quote)}]*{mark}", "")
            plain = plain.with_columns(flaw=_all(None, plain.height).set(self._with_returns(unquoted), JOINED))
            several = [any(re.search(_RETURN, cell) for cell in row) for row in found.others]
            flaws = [JOINED if flaw is None and one else flaw for flaw, one in zip(flaws, several, strict=True)]
        frame = pl.DataFrame({**others, "flaw": flaws}, schema=plain.schema)
        order = pl.Series("order", [*found.plain_at, *found.others_at], dtype=pl.Int64)
        joined = pl.concat([plain, frame.with_columns(pl.col(_OVERFLOW).replace("", None))])
        return joined.with_columns(order).sort("order").drop("order")


def _scanned(
    source: Path | bytes, separator: str, quote: str | None, width: int, names: dict[int, str], *, skip: int
) -> pl.DataFrame:
    if not source:
        return pl.DataFrame(schema={**dict.fromkeys(names.values(), pl.String), "flaw": pl.String})
    source, skip = _plainly(source, skip)
    # One column more than there are: where it is filled, the row is too long.
    frame = pl.scan_csv(
        source,
        has_header=False,
        skip_rows=skip,
        separator=separator,
        quote_char=quote,
        schema={str(place): pl.String() for place in range(width + 1)},
        missing_columns="insert",
        extra_columns="ignore",
        truncate_ragged_lines=True,
        encoding="utf8-lossy",
        glob=False,
        raise_if_empty=False,
    )
    columns = [pl.col(str(place)).alias(name) for place, name in names.items()]
    return frame.select(*columns, pl.lit(None, pl.String).alias("flaw")).collect(engine="streaming")


def _plainly(source: Path | bytes, skip: int) -> tuple[Path | bytes, int]:
    """The same text behind an empty line, to be skipped, where polars would take it for compressed data: "x^" begins zlib."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            if not file.read(4).startswith(_COMPRESSED):
                return source, skip
        source = source.read_bytes()
    return (b"\n" + source, skip + 1) if source.startswith(_COMPRESSED) else (source, skip)


def _with_line_feeds(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _holds(path: Path, quote: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(quote.encode()) >= 0


def _all(value: str | bool | None, rows: int) -> pl.Series:
    return pl.Series([value], dtype=pl.Boolean if isinstance(value, bool) else pl.String).new_from_index(0, rows)


def _full(column: pl.Series) -> pl.Series:
    return column.set(column == "", None)
