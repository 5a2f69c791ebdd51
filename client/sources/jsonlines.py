"""JSON lines: one object per line. polars scans what is regular; else every line is read by itself and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PanicException, PolarsError

from client.reading import Reading
from client.sources.scan import FLAW, Scan, reading, series
from shared.errors import InputError

BROKEN = "line that is no JSON object"


def open_json_lines(path: Path, how: Reading) -> Scan:
    """The file as a table; its columns are the keys, in the order in which they first appear.

    Raises:
        InputError: it cannot be opened, or holds no object.
    """
    with reading(str(path)):
        try:
            names = _scan(path, how).collect_schema().names()
        except (PolarsError, PanicException):
            objects = _objects(path, how)
            names = list(dict.fromkeys(name for row in objects if row is not None for name in row))
            if not names:
                raise InputError(
                    f"holds no JSON object in {len(objects)} lines", where=str(path), do="expected one object per line, {...}"
                ) from None

    def take(positions: Sequence[int]) -> pl.DataFrame:
        try:
            columns = [pl.col(names[position]).alias(str(position)) for position in positions]
            return _scan(path, how).select(*columns, pl.lit(None, pl.String).alias(FLAW)).collect(engine="streaming")
        except (PolarsError, PanicException):
            rows = _objects(path, how)
            cells = [
                series(str(position), [None if row is None else row.get(names[position]) for row in rows])
                for position in positions
            ]
            return pl.DataFrame([*cells, pl.Series(FLAW, [BROKEN if row is None else None for row in rows], dtype=pl.String)])

    return Scan(where=str(path), names=names, named=True, take=take, decoded=True)


def _scan(path: Path, how: Reading) -> pl.LazyFrame:
    # polars takes these characters of a path for a pattern, and reads UTF-8 only.
    direct = how.encoding.lower() in ("utf-8", "utf8") and not set("*?[") & set(str(path))
    return pl.scan_ndjson(path if direct else _text(path, how).encode("utf-8", "replace"), infer_schema_length=None)


def _text(path: Path, how: Reading) -> str:
    return path.read_bytes().decode(how.encoding, "replace").removeprefix("\ufeff")


def _objects(path: Path, how: Reading) -> list[dict[str, Any] | None]:
    """One object per line that is not blank; None where the line is something else."""
    # Not splitlines(): JSON texts may hold other characters that end a line.
    return [_object(line) for line in _text(path, how).split("\n") if line.strip()]


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
