"""One opened file or query: its column names, and its rows when they are asked for."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import polars as pl
from polars.exceptions import PanicException, PolarsError

from shared.base.errors import InputError
from shared.base.nearest_names import nearest_names

Key = int | str
"""How a scan knows a column: its position (from 0), or the key of JSON lines."""


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Some rows of a scan.

    Args:
        columns: Key -> cells, as a column of the file's own type or as the values that a parser made.
        flaws: String (rows,): why a row is unusable as a whole; null where it is not.
    """

    columns: Mapping[Key, pl.Series | Sequence[Any]]
    flaws: pl.Series


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A table that was opened but not read.

    Which columns there are is a matter of a header or a schema, never of the rows. Where a format has neither, it follows from
    what the platform file declares: JSON lines have every key that it names, delimited text without a header every position.

    Args:
        where: File or URL, for messages.
        names: Column names in the order of the header or schema; None where there is none.
        take: Keys -> the rows, in one or more portions.
        seen: The keys or positions that rows hold, for messages and for public tables alone.
        keyed: Whether rows are objects with keys of their own (JSON lines).
        decoded: Whether the rows come from bytes of text, so that U+FFFD means bytes that could not be decoded.
    """

    where: str
    names: Sequence[str] | None
    take: Callable[[Sequence[Key]], Iterable[Portion]]
    seen: Callable[[], Sequence[str]] = lambda: ()
    keyed: bool = False
    decoded: bool = False

    def find(self, column: str | int, *, offset: int = 0, public: bool = False) -> Key | None:
        """The key of a column that is given by name or by position from 1; None if there is none.

        Args:
            public: Whether the rows are public, so that the keys of JSON lines that they hold are the columns.
        """
        if self.names is None:
            if self.keyed:
                known = isinstance(column, str) and not offset and (not public or column in self.seen())
                return column if known else None
            return column - 1 + offset if isinstance(column, int) else None
        position = column - 1 if isinstance(column, int) else self.names.index(column) if column in self.names else None
        return position + offset if position is not None and position + offset < len(self.names) else None

    def columns(self) -> str:
        """The columns, as a message names them."""
        names = self.seen() if self.names is None else self.names
        if not self.keyed and not self.named:
            return f"the file has no header and {len(names)} columns; expected a position from 1 to {len(names)}"
        if not names:
            return "no row has any"
        return f"expected one of: {', '.join(names[:50])}" + (", ..." if len(names) > 50 else "")

    def missing(self, columns: Mapping[str, str | int]) -> str:
        """What to do about columns that are not there: the line that a platform file lacks, and the columns that there are.

        Args:
            columns: Role -> its column.
        """
        names = list((self.seen() if self.names is None else self.names) or ())
        found = {role: nearest_names(column, names) if isinstance(column, str) else [] for role, column in columns.items()}
        near = {role: nearest[0] for role, nearest in found.items() if nearest}
        cures = []
        if near:
            line = ", ".join(f"{role} = {json.dumps(name, ensure_ascii=False)}" for role, name in near.items())
            meant = " and ".join(f"'{name}'" for name in near.values())
            cures.append(f"did you mean {meant}? In a source: columns = {{ {line} }}")
        elif self.decoded and not self.keyed and names:
            if names[0].startswith("#"):
                cures.append('if the first line is a remark: comment = "#"')
            for separator in SEPARATORS if len(names) == 1 else ():
                if separator in names[0]:
                    cures.append(f"the first line seems to be cut by {separator!r}: separator = {json.dumps(separator)}")
                    break
        return "; ".join([*cures, self.columns()])

    @property
    def named(self) -> bool:
        """Whether the names are the file's own."""
        return bool(self.names) and any(self.names or ())


SEPARATORS = ("::", "\t", ";", "|", ",")
"""What the cells of a line may be cut by, the surest first."""
_FLAWS = (ValueError, TypeError, ArithmeticError, LookupError, EOFError, RecursionError)
"""What bytes and values can provoke in readers that nobody meant."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever unreadable bytes provoke below into one message."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=where, do="check path and permissions") from None
    except (PolarsError, PanicException, csv.Error, zlib.error, *_FLAWS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        do = "check format, encoding, separator and quote in the platform file"
        raise InputError("cannot be read", where=where, do=do, quote=reason) from None
