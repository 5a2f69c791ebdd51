"""One opened file or query: its column names, and its rows when they are asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars.exceptions import PanicException, PolarsError

from shared.errors import InputError

FLAW = "\0flaw"
"""Name of the column that says why a row is unusable as a whole; null where it is not."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A table that was opened but not read.

    Args:
        where: File or URL, for messages.
        names: Column names in the order of the file; positions as text where there is no header.
        named: Whether the names are the file's own.
        take: Positions (from 0) -> rows, their columns named by position, with `FLAW`.
        decoded: Whether the rows come from bytes of text, so that U+FFFD means bytes that could not be decoded.
    """

    where: str
    names: Sequence[str]
    named: bool
    take: Callable[[Sequence[int]], pl.DataFrame]
    decoded: bool = False

    def position(self, column: str | int) -> int | None:
        """Position (from 0) of a column that is given by name or by position from 1; None if there is none."""
        if isinstance(column, int):
            return column - 1 if column <= len(self.names) else None
        return self.names.index(column) if self.named and column in self.names else None

    def columns(self) -> str:
        """The columns, as a message names them."""
        if not self.named:
            return f"the file has no header and {len(self.names)} columns; expected a position from 1 to {len(self.names)}"
        shown = ", ".join(self.names[:50]) + (", ..." if len(self.names) > 50 else "")
        return f"expected one of: {shown}"


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever unreadable bytes provoke below into one message."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=where, do="check path and permissions") from None
    except (PolarsError, PanicException, csv.Error, ValueError, TypeError, ArithmeticError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        do = "check format, encoding, separator and quote in the platform file"
        raise InputError("cannot be read", where=where, do=do, quote=reason) from None


def series(name: str, values: Sequence[Any]) -> pl.Series:
    """A column of Python values; values of mixed types become texts, so that nothing is lost to a guess."""
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, OverflowError, PolarsError, PanicException, ValueError):
        return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def stack(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Frames with the same column names, one under the other; types that do not meet become texts."""
    if len(frames) == 1:
        return frames[0]
    try:
        return pl.concat(frames, how="vertical_relaxed")
    except PolarsError:
        columns = [series(name, [cell for frame in frames for cell in frame[name].to_list()]) for name in frames[0].columns]
        return pl.DataFrame(columns)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
