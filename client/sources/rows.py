"""A source's rows under the names of their roles, whatever holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from client.reading import Column, Lookup, Reading
from client.source_file import Source
from client.sources.cleaning import Cleaning
from client.sources.database import open_query, shown
from client.sources.delimited import open_delimited
from client.sources.jsonlines import open_json_lines
from client.sources.scan import FLAW, Scan, reading, stack
from client.sources.values import as_ids
from shared.errors import InputError

UNDECODED = "text that cannot be decoded"
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One column to read.

    Args:
        name: What the column is called in the frame that comes back.
        column: Its name or position in the file.
        required: Whether the column's absence is an error.
        key: Whether a row is unusable without it.
        offset: Columns to go on from there.
    """

    name: str
    column: Column
    required: bool = True
    key: bool = False
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as their file holds them.

    Args:
        frame: Columns named as they were wanted; those that are not required may be absent.
        labels: Column -> its own name in the file; absent where the file has no header.
    """

    frame: pl.DataFrame
    labels: dict[str, str]


def read_source(source: Source, cleaning: Cleaning, wanted: Sequence[Wanted]) -> Table:
    """The source's rows without those that are unusable as a whole, codes replaced by words.

    Raises:
        InputError: the source cannot be read, or lacks a required column.
    """
    table = read_table(source, cleaning, wanted, source=cleaning.source)
    frame = table.frame
    for want in wanted:
        if want.name in source.lookup and want.name in frame.columns:
            frame = _replaced(frame, want, source.lookup[want.name], cleaning)
    return Table(frame=frame, labels=table.labels)


def read_table(how: Reading, cleaning: Cleaning | None, wanted: Sequence[Wanted], *, source: str) -> Table:
    """The wanted columns of a file, of several files of one schema, or of a query.

    Args:
        cleaning: Where rows and their flaws are counted; None for a second table (words, links), whose unusable
            rows say nothing and are passed over.

    Raises:
        InputError: it cannot be read, or lacks a required column.
    """
    frames: list[pl.DataFrame] = []
    labels: dict[str, str] = {}
    for scan in (_open(how, path) for path in how.path or (None,)):
        positions = _positions(scan, wanted, source)
        with reading(scan.where):
            taken = scan.take(sorted(set(positions.values())))
            if scan.decoded:
                taken = _decoded(taken)
            columns = (pl.col(str(position)).alias(name) for name, position in positions.items())
            # Two roles may share one column, so the frame is named only here.
            frames.append(taken.select(*columns, FLAW))
        if scan.named:
            labels |= {name: scan.names[position] for name, position in positions.items()}
    common = [name for name in frames[0].columns if all(name in frame.columns for frame in frames)]
    frame = stack([frame.select(common) for frame in frames])
    if cleaning is not None:
        cleaning.read += frame.height
        for reason, rows in frame[FLAW].drop_nulls().value_counts().sort(FLAW).iter_rows():
            cleaning.lose(reason, rows)
    return Table(frame=frame.filter(pl.col(FLAW).is_null()).drop(FLAW), labels=labels)


def place(how: Reading) -> str:
    """The first file or the URL without its password, for messages."""
    return str(how.path[0]) if how.path else shown(how.url or "")


def _open(how: Reading, path: Path | None) -> Scan:
    if path is None:
        return open_query(how)
    if not path.is_file():
        found = "is not a file" if path.exists() else "the file does not exist"
        raise InputError(found, where=str(path), do="check 'path' in the platform file")
    match how.format_of(path):
        case "csv":
            return open_delimited(path, how)
        case "jsonl":
            return open_json_lines(path, how)
        case "parquet":
            return _open_parquet(path)
        case other:
            raise InputError(f"format '{other}' holds no columns", where=str(path), do="expected csv, jsonl or parquet")


def _open_parquet(path: Path) -> Scan:
    with reading(str(path)):
        lazy = pl.scan_parquet(path, glob=False)
        names = lazy.collect_schema().names()

    def take(positions: Sequence[int]) -> pl.DataFrame:
        columns = (pl.col(names[position]).alias(str(position)) for position in positions)
        return lazy.select(*columns).with_columns(pl.lit(None, pl.String).alias(FLAW)).collect(engine="streaming")

    return Scan(where=str(path), names=names, named=True, take=take)


def _positions(scan: Scan, wanted: Sequence[Wanted], source: str) -> dict[str, int]:
    positions = {}
    for want in wanted:
        position = scan.position(want.column)
        if position is not None and position + want.offset < len(scan.names):
            positions[want.name] = position + want.offset
        elif want.required:
            column = repr(want.column) + (f" + {want.offset}" if want.offset else "")
            raise InputError(
                f"source '{source}': column {column} (for '{want.name}') does not exist", where=scan.where, do=scan.columns()
            )
    return positions


def _decoded(frame: pl.DataFrame) -> pl.DataFrame:
    texts = [name for name, kind in frame.schema.items() if kind == pl.String and name != FLAW]
    if not texts:
        return frame
    undecoded = pl.any_horizontal(pl.col(name).str.contains(_REPLACEMENT, literal=True).fill_null(False) for name in texts)
    return frame.with_columns(pl.col(FLAW).fill_null(pl.when(undecoded).then(pl.lit(UNDECODED))))


def _replaced(frame: pl.DataFrame, want: Wanted, lookup: Lookup, cleaning: Cleaning) -> pl.DataFrame:
    wanted = [Wanted(name="key", column=lookup.key), Wanted(name="value", column=lookup.value)]
    words = read_table(lookup, None, wanted, source=f"{cleaning.source}.lookup.{want.name}").frame
    words = words.with_columns(as_ids(words["key"]).alias("key")).drop_nulls().unique("key", keep="first", maintain_order=True)
    codes = pl.DataFrame({"key": as_ids(frame[want.name])})
    found = codes.join(words, on="key", how="left", maintain_order="left")
    wordless = codes["key"].is_not_null() & found["value"].is_null()
    frame = frame.with_columns(found["value"].alias(want.name))
    if want.key:
        return cleaning.keep(frame, pl.lit(~wordless), otherwise=f"{want.name}: code without a word")
    cleaning.lose(f"{want.name}: code without a word (row kept)", int(wordless.sum()))
    return frame
