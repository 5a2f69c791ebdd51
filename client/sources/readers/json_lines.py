"""JSON lines: one object per line, each line read by itself.

The keys of one line say nothing of another. So a key is a column because the platform file names it, a line without it has no
value there, and what is no JSON object is counted. A file `.json` may be one array of objects in their place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from client.config.table_location import Reading, suffix_of
from client.sources.readers.file_bytes import bytes_of
from client.sources.readers.table_scan import Key, Portion, Scan, reading
from client.sources.readers.text_encoding import lines_of

BROKEN = "line that is no JSON object"
_ROWS_AT_ONCE = 100_000
_SPACE = " \t\n\r"
_SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # documented by its use in json.decoder


def open_json_lines(path: Path, how: Reading) -> Scan:
    """The file as a table of whatever keys are asked for.

    Raises:
        InputError: it cannot be opened.
    """
    with reading(str(path)):
        path.stat()

    def take(keys: Sequence[Key]) -> Iterator[Portion]:
        objects = _objects(path, how)
        for start in range(0, len(objects), _ROWS_AT_ONCE):
            rows = [_object(line) for line in objects[start : start + _ROWS_AT_ONCE]]
            columns = {key: [None if row is None else row.get(str(key)) for row in rows] for key in keys}
            flaws = pl.Series([BROKEN if row is None else None for row in rows], dtype=pl.String)
            yield Portion(columns=columns, flaws=flaws)

    def seen() -> Sequence[str]:
        with reading(str(path)):
            return list(dict.fromkeys(name for line in _objects(path, how) for name in _object(line) or ()))

    return Scan(where=str(path), names=None, take=take, seen=seen, keyed=True, decoded=True)


def _objects(path: Path, how: Reading) -> Sequence[Any]:
    # Not splitlines(): JSON texts may hold other characters that end a line.
    lines = [row for line in lines_of(bytes_of(path), how.encoding) for row in _rows(line) if row.strip()]
    if suffix_of(path) == ".json" and lines and lines[0].lstrip().startswith("["):
        try:
            rows = json.loads("\n".join(lines))
        except (ValueError, RecursionError):
            return lines
        return rows if isinstance(rows, list) else lines
    return lines


def _rows(line: str) -> list[str]:
    """A line, or what a carriage return alone ended within it; no text of JSON holds one, but space between its tokens may."""
    return [line] if "\r" not in line.rstrip("\r") or _object(line) is not None else line.split("\r")


def _object(line: Any) -> dict[str, Any] | None:
    if not isinstance(line, str):
        return line if isinstance(line, dict) else None
    text = line.strip(_SPACE)
    try:
        # As `json.loads` does, without the half of its time that it spends around the scanner.
        row, end = _SCAN(text, 0)
    except (ValueError, RecursionError, StopIteration):
        return None
    return row if isinstance(row, dict) and end == len(text) else None
