"""The beginning of every table that a platform is pointed at: columns and some thousands of rows, for drafting its file."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import sqlalchemy as sql
from polars.exceptions import PanicException, PolarsError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from client.config.table_location import Column, Reading, suffix_of
from client.sources.cell_values import as_numbers
from client.sources.readers.cells import canonical_text
from client.sources.readers.database import open_query, reason_of, shown_url
from client.sources.readers.delimited import REMARK, open_delimited
from client.sources.readers.file_bytes import bytes_of, is_compressed, part_files
from client.sources.readers.json_lines import open_json_lines
from client.sources.readers.table_scan import SEPARATORS, Key, Scan, reading
from shared.base.errors import InputError

ROWS = 5_000
_BYTES = 1 << 22
_LOOKED_AT = 1 << 18
"""Bytes that are looked at for line ends."""
_PAIRED = 0.9
"""Share of the bytes from 0x80 that lie in runs of even length, from which on text is taken for Chinese."""
_NOT_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
"""Bytes that Windows-1252 has no character for."""
_DECIMAL_COMMA = r"^[-+]?\d+,\d{1,2}$"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One table, as far as it was read.

    Args:
        name: For a source, from the file's or the table's name.
        keys: How a platform file says where it is and how it is read: path or url, table, separator, encoding, header.
        frame: The first rows; columns under their own names.
    """

    name: str
    keys: Mapping[str, str | bool | list[str]]
    frame: pl.DataFrame = field(repr=False)


def sample_file(path: Path, parts: Sequence[Path] = (), *, header: bool = True) -> Sample:
    """The beginning of a file.

    Args:
        parts: Further files with rows of the same table.
        header: Whether delimited text has one; without it columns are called by their positions.

    Raises:
        InputError: it cannot be read as delimited text, JSON lines or Parquet.
    """
    if not path.is_file():
        raise InputError("is not a file", where=str(path), do="name files of tables, or a folder of them")
    keys: dict[str, str | bool | list[str]] = {"path": [str(path), *map(str, parts)] if parts else str(path)}
    name = _name(re.sub(r"[-_.]?\d+$", "", path.name.split(".")[0]) if parts else path.name.split(".")[0])
    form = Reading(path=(path,)).format_of(path)
    if form == "parquet":
        return Sample(name=name, keys=keys, frame=_parquet(path))
    with tempfile.TemporaryDirectory() as folder:
        # Only the beginning is read, however long the file is.
        begin = Path(folder) / (path.name.removesuffix(path.suffix) if is_compressed(path) else path.name)
        begin.write_bytes(_beginning(path))
        try:
            if form == "jsonl":
                return Sample(name=name, keys=keys, frame=_rows(open_json_lines(begin, Reading(path=(begin,)))))
            found: dict[str, str | bool] = {**_encoding(begin), **_separator(begin), **_line_ends(begin, header=header)}
            if not header:
                found |= {"header": False, **_remarks(begin)}
            how = Reading(path=(begin,), **found)  # type: ignore[arg-type]
            return Sample(name=name, keys={**keys, **found}, frame=_typed(_rows(open_delimited(begin, how))))
        except InputError as error:
            # A person knows of their own file alone.
            raise InputError(error.found, where=str(path), do=error.do, quote=error.quote) from None


def sample_database(url: str, tables: Sequence[str] = ()) -> Iterator[Sample]:
    """The beginning of every table of a database, or of those that are named.

    Args:
        url: SQLAlchemy's; variables (`${NAME}`) are replaced for reading, and stay in what is written.

    Raises:
        InputError: it cannot be reached, or a named table is not there.
    """
    try:
        how = Reading(url=url, table="any")
    except ValidationError as error:
        # Pydantic's own words would repeat the URL, and with it a password; ours name a variable at most.
        said = [str(one["ctx"]["error"]) for one in error.errors(include_input=False) if "error" in one.get("ctx", {})]
        unset = [text for text in said if text.startswith("the environment variable")]
        raise InputError(
            unset[0] if unset else "cannot be used",
            where="--url",
            do="set it for this command and for the worker" if unset else "write it as dialect://user:${PASSWORD}@host/name",
        ) from None
    assert how.url is not None
    try:
        engine = sql.create_engine(how.url)
        try:
            inspector = sql.inspect(engine)
            known = [*inspector.get_table_names(), *inspector.get_view_names()]
            quote = engine.dialect.identifier_preparer.quote
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, ValueError) as error:
        do = "check the URL and the driver"
        raise InputError("the database cannot be opened", where=shown_url(how.url), do=do, quote=reason_of(error)) from None
    missing = [name for name in tables if name not in known]
    if missing:
        raise InputError(
            f"no table {missing[0]!r}", where=shown_url(how.url), do=f"tables are: {', '.join(sorted(known)) or 'none'}"
        )
    for name in tables or sorted(known):
        begin = Reading(url=url, query=f"SELECT * FROM {quote(name)} LIMIT {ROWS}")  # noqa: S608 - quoted by the dialect
        yield Sample(name=_name(name), keys={"url": url, "table": name}, frame=_rows(open_query(begin)))


def sample_columns(how: Reading) -> dict[Column, pl.Series]:
    """The first rows of a table that a platform file names, read as it says: by name, or by position from 1.

    Raises:
        InputError: it cannot be read.
    """
    if not how.path:
        return _positioned(open_query(how))
    path = part_files(how.path[0])[0]
    form = how.format_of(path)
    if form == "parquet":
        return dict(_parquet(path).to_dict().items())
    with tempfile.TemporaryDirectory() as folder:
        begin = Path(folder) / (path.name.removesuffix(path.suffix) if is_compressed(path) else path.name)
        begin.write_bytes(_beginning(path))
        return _positioned((open_json_lines if form == "jsonl" else open_delimited)(begin, how))


def _parquet(path: Path) -> pl.DataFrame:
    """The first rows of a Parquet file."""
    with reading(str(path)):
        data = io.BytesIO(bytes_of(path)) if is_compressed(path) else path
        return pl.scan_parquet(data, glob=False).head(ROWS).collect()


def _positioned(scan: Scan) -> dict[Column, pl.Series]:
    """The first rows by the names that a platform file may use for their columns: a position where there is no name."""
    names = scan.names if scan.names is not None else scan.seen() if scan.keyed else [""] * len(scan.seen())
    called = [at if not name or name in names[: at - 1] else name for at, name in enumerate(names, 1)]
    return dict(zip(called, _rows(scan).iter_columns(), strict=True))


def _rows(scan: Scan) -> pl.DataFrame:
    """The first rows, with types that are guessed from them: a draft is read and corrected by a person."""
    with reading(scan.where):
        names = scan.names if scan.names is not None else scan.seen()
        if scan.names is None and not scan.keyed:
            names = [str(at) for at in range(1, len(names) + 1)]
        keys: list[Key] = list(names) if scan.keyed else list(range(len(names)))
        portions = []
        for portion in scan.take(keys):
            portions.append(portion.columns)
            if sum(len(next(iter(one.values()), ())) for one in portions) >= ROWS:
                break
        columns: dict[str, pl.Series] = {}
        for at, (key, name) in enumerate(zip(keys, names, strict=True), 1):
            parts = [portion[key] for portion in portions]
            series = [part if isinstance(part, pl.Series) else _guessed(part) for part in parts]
            # Of two columns of one name the first has it, as where a platform file names it.
            columns[f"column {at}" if not name or name in columns else name] = (
                pl.concat(series) if series else pl.Series([], dtype=pl.Null)
            )
    return pl.DataFrame(columns).head(ROWS)


def _guessed(values: Sequence[Any]) -> pl.Series:
    values = values[:ROWS]
    # Of a NUMERIC that is NaN polars prints a backtrace.
    if any(isinstance(value, Decimal) and not value.is_finite() for value in values):
        return canonical_text(values, "text")
    try:
        return pl.Series(values, strict=True)
    except (TypeError, OverflowError, PolarsError, PanicException, ValueError, RuntimeError):
        return canonical_text(values, "text")


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of delimited text as numbers where every cell that is not empty is one."""
    for name in frame.columns:
        if frame[name].dtype == pl.String:
            cells = frame[name].str.strip_chars()
            numbers = cells.replace("", None).cast(pl.Float64, strict=False)
            if cells.str.contains(_DECIMAL_COMMA).any():
                numbers = as_numbers(cells.replace("", None))
            if numbers.count() and numbers.null_count() == int((cells.fill_null("") == "").sum()):
                frame = frame.with_columns(numbers.alias(name))
    return frame


def _beginning(path: Path) -> bytes:
    with reading(str(path)):
        data = bytes_of(path, _BYTES)
    if len(data) < _BYTES:
        return data
    return data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]


def _encoding(path: Path) -> dict[str, str]:
    """The encoding that the bytes are of, as a platform file names it; nothing for UTF-8.

    In Chinese text of GB 18030 bytes from 0x80 come in pairs; in European text they are single, between letters. Windows-1252 has
    every character of Latin-1, and quotation marks and the euro sign besides.
    """
    data = path.read_bytes()
    try:
        data.decode("utf-8-sig")
        return {}
    except UnicodeDecodeError:
        pass
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return {"encoding": "utf-16"}
    runs = [len(run) for run in re.findall(rb"[\x81-\xfe]+", data)]
    paired = sum(length for length in runs if length % 2 == 0)
    if paired > _PAIRED * sum(runs):
        try:
            data.decode("gb18030")
            return {"encoding": "gb18030"}
        except UnicodeDecodeError:
            pass
    return {"encoding": "latin-1" if set(data) & _NOT_1252 else "cp1252"}


def _separator(path: Path) -> dict[str, str]:
    """The separator that cuts the first lines into the same number of columns, more than one."""
    text = path.read_bytes()[:65536].decode("latin-1")
    # Separators inside quotation marks do not count; the last line may be cut off.
    lines = re.split(r"\r\n|\r|\n", re.sub(r'"(?:[^"\\]|""|\\.)*"', "", text))[:20]
    lines = [line for line in lines if line.strip() and not line.startswith((REMARK, "sep="))]
    for separator in SEPARATORS:
        counts = {line.count(separator) for line in lines}
        if len(counts) == 1 and counts != {0}:
            default = "\t" if suffix_of(path) == ".tsv" else ","
            return {} if separator == default else {"separator": separator}
    return {}


def _line_ends(path: Path, *, header: bool) -> dict[str, bool]:
    """That a carriage return alone ends a line, too, where others end otherwise; nothing where the header says how lines end."""
    text = re.sub(rb'"(?:[^"\\]|""|\\.)*"', b"", path.read_bytes()[:_LOOKED_AT])
    first = re.search(rb"\r\n|\r|\n", text)
    if first is None or re.search(rb"\r(?=[^\r\n])", text) is None or (header and first[0] == b"\r"):
        return {}
    # In files that are joined each part has the columns of the header; in a cell a carriage return cuts a row into shorter ones.
    lines = [line for line in re.split(rb"\r\n|\r|\n", text)[:-1] if line]
    separators = [{line.count(separator.encode()) for line in lines} for separator in SEPARATORS]
    return {"carriage_returns": True} if any(len(counts) == 1 and counts != {0} for counts in separators) else {}


def _remarks(path: Path) -> dict[str, str]:
    """What remarks before the first row begin with."""
    return {"comment": REMARK} if path.read_bytes().startswith(REMARK.encode()) else {}


def _name(text: str) -> str:
    kept = "".join(character if character.isascii() and character.isalnum() else "-" for character in text.lower())
    return kept.strip("-")[:40] or "table"
