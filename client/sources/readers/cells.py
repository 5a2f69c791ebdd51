"""Cells as text: one declared rule per cell, whatever type a file, a part of it or a driver gave them.

Files infer types from their rows: one missing integer makes floats of a column, one text makes texts of it. So no type that was
found decides how a cell is read. Every column of every file becomes text (or lists of numbers, for vectors) cell by cell before
files are joined, and two columns of different types that hold the same values become the same texts.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any, Literal

import polars as pl
from polars.exceptions import PanicException, PolarsError

Kind = Literal["id", "ids", "text", "time", "vector"]
"""What a column is read as: ids are exact and single, or the entries of a list; texts join what a list holds; times are texts in
which a date has a time of day; vectors are lists of float64."""

UNUSABLE = "\0"
"""First character of what is no id; the reason follows. No id begins with it."""
A_LIST = "a list or an object, not one id"
INEXACT = "a floating-point number too large to be an exact id (write the column as integers or as text)"

_VECTOR = pl.List(pl.Float64)
_IDS = pl.List(pl.String)
_NUMBERS = r"[^\s,;\[\]{}()]+"


def canonical_text(column: pl.Series | Sequence[Any], kind: Kind) -> pl.Series:
    """The cells of a column as text, or as lists of float64 for vectors; null where a cell is missing.

    Args:
        column: A column of a file, or the values that a parser or a database driver made.

    >>> canonical_text(pl.Series([1.0, 2.5, float("nan"), None]), "text").to_list()
    ['1', '2.5', None, None]
    >>> canonical_text([1.0, 2.5, True, "7", ["a", 1]], "text").to_list()
    ['1', '2.5', 'true', '7', 'a, 1']
    >>> canonical_text([[1, None], "0.5 2", None, {}], "vector").to_list()
    [[1.0, nan], [0.5, 2.0], None, None]
    """
    if not isinstance(column, pl.Series):
        if kind == "vector":
            return _vectors(column)
        if kind == "ids":
            return _id_lists(column)
        if (texts := _all_texts(column)) is not None:
            return texts.str.strip_chars_start(UNUSABLE) if kind == "id" else texts
        text_of = _OF[kind]
        # Most cells are texts already.
        mark = UNUSABLE if kind == "id" else None
        return _strings(
            each(lambda cell: cell if cell is None or (type(cell) is str and cell[:1] != mark) else text_of(cell), column)
        )
    if kind == "vector":
        return _vector_column(column)
    if kind == "ids":
        return _id_lists(python_cells(column))
    try:
        texts = _text_column(column, kind)
    except (PolarsError, PanicException):
        texts = None
    return texts if texts is not None else _strings(each(_OF[kind], python_cells(column)))


def _all_texts(cells: Sequence[Any]) -> pl.Series | None:
    """The column at once where every cell is a text or missing, as most are; None where one is not."""
    if not {type(cell) for cell in cells} <= {str, type(None)}:
        return None
    try:
        return pl.Series(cells, dtype=pl.String)
    except UnicodeError:
        return None


def each(convert: Callable[[Any], str | None], cells: Iterable[Any]) -> list[str | None]:
    """Every cell converted by itself; missing where one cannot be, which says nothing of any other.

    >>> each(str.upper, ["a", 1, "b"])
    ['A', None, 'B']
    """
    found: list[str | None] = []
    for cell in cells:
        try:
            found.append(convert(cell))
        except _FLAWS:
            found.append(None)
    return found


def python_cells(column: pl.Series) -> list[Any]:
    """The cells as Python's values; None where one has none, such as a time beyond the year 9999."""
    try:
        return column.to_list()
    except _FLAWS:
        return [_one(column, at) for at in range(len(column))]


def _one(column: pl.Series, at: int) -> Any:
    try:
        return column[at]
    except _FLAWS:
        return None


_FLAWS = (ValueError, TypeError, ArithmeticError, RecursionError, LookupError, AttributeError, PolarsError, PanicException)
"""What a value can provoke that no writer of tables meant."""


def empty(kind: Kind) -> pl.Series:
    """A column without rows."""
    return pl.Series([], dtype=_VECTOR if kind == "vector" else _IDS if kind == "ids" else pl.String())


def cell_text(cell: Any) -> str | None:
    """One value as a text; None where it is missing.

    | value | text |
    |---|---|
    | None, NaN | missing |
    | 7, 7.0, Decimal("7.00") | `7` |
    | 0.5, 1e300, inf | `0.5`, `1e+300`, `inf` |
    | True | `true` |
    | a time | `1970-01-02 00:00:00.000000`, in UTC |
    | bytes | as UTF-8, else `\\x` and hexadecimal digits |
    | a list | its cells, joined by a comma and a space |
    | a list of lists | the cells of all, likewise |
    | an object | JSON |
    | an object of MongoDB's exports: `{"$oid": "5f"}`, `{"$numberLong": "7"}` | its value: `5f`, `7` |
    """
    cell = _plain(cell)
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int):
        return str(cell) if abs(cell) < 1 << 512 else hex(cell)
    if isinstance(cell, float):
        return None if math.isnan(cell) else str(int(cell)) if abs(cell) < 2**53 and cell.is_integer() else repr(cell)
    if isinstance(cell, Decimal):
        return _decimal(cell)
    if isinstance(cell, dt.datetime):
        return _moment(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        return _decoded(bytes(cell))
    if isinstance(cell, pl.Series):
        return cell_text(cell.to_list())
    if isinstance(cell, list | tuple):
        return ", ".join(part for part in map(cell_text, cell) if part)
    return _json(cell) if isinstance(cell, dict) else str(cell)


def cell_id(cell: Any) -> str | None:
    """One value as a text that is an id, exactly; begins with `UNUSABLE` where it is none.

    A whole float keeps its `.0`, which the platform's rules take off (`client/sources/ids.py`). Bytes are text where they are
    plain text, else `\\x` and hexadecimal digits: of binary ids no two become one.
    """
    cell = _plain(cell)
    if isinstance(cell, str):
        return cell.lstrip(UNUSABLE) if cell.startswith(UNUSABLE) else cell
    if isinstance(cell, list | tuple | dict | pl.Series):
        return UNUSABLE + A_LIST
    if isinstance(cell, float):
        if abs(cell) >= 2**53:
            return UNUSABLE + INEXACT
        return f"{int(cell)}.0" if cell.is_integer() else cell_text(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        data = bytes(cell)
        text = _decoded(data)
        return text if text.isprintable() and text == text.strip() else "\\x" + data.hex()
    return cell_text(cell)


def cell_ids(cell: Any) -> list[str | None] | None:
    """The entries of a list, each as an id; what is no list is a list of one."""
    if isinstance(cell, pl.Series):
        cell = python_cells(cell)
    if cell is None or isinstance(cell, list | tuple):
        return None if cell is None else each(cell_id, cell)
    return split_ids(cell) if isinstance(cell, str) else each(cell_id, [cell])


def split_ids(text: str) -> list[str | None]:
    """The entries of a list that is written as a text: with brackets or without, cut at commas, semicolons, bars or spaces.

    >>> split_ids("101, 103,104"), split_ids('["a b", "c"]'), split_ids("N1 N2"), split_ids("")
    (['101', '103', '104'], ['a b', 'c'], ['N1', 'N2'], [])
    """
    text = text.strip().strip(UNUSABLE)
    try:
        if text.startswith("[") and isinstance(found := json.loads(text, parse_float=str, parse_int=str), list):
            return each(cell_id, found)
    except (ValueError, RecursionError):
        pass
    bare = re.sub(r"^[\[({]|[\])}]$", "", text)
    parts = re.split(r"[,;|]", bare) if re.search(r"[,;|]", bare) else bare.split()
    return [entry for entry in (part.strip().strip("\"'") for part in parts) if entry]


def cell_time(cell: Any) -> str | None:
    """One value as a text; a date is the beginning of its day."""
    if isinstance(cell, dt.date) and not isinstance(cell, dt.datetime):
        cell = dt.datetime.combine(cell, dt.time())
    return cell_text(cell)


def _plain(cell: Any) -> Any:
    """The value of an object of MongoDB's extended JSON; whatever else, as it is."""
    while isinstance(cell, dict) and len(cell) == 1 and cell.keys() <= _EXTENDED:
        (cell,) = cell.values()
    return cell


_EXTENDED = {"$oid", "$uuid", "$numberLong", "$numberInt", "$numberDouble", "$numberDecimal", "$date"}
_OF: dict[str, Callable[[Any], str | None]] = {"id": cell_id, "text": cell_text, "time": cell_time}


def _text_column(column: pl.Series, kind: Kind) -> pl.Series | None:
    """The same as `_OF[kind]` of each cell, at once; None for types that are read cell by cell."""
    name, dtype = column.name, column.dtype
    if dtype == pl.String:
        return column.str.strip_chars_start(UNUSABLE) if kind == "id" else column
    if dtype.is_float():
        return _floats(column, kind)
    if isinstance(dtype, pl.Decimal):
        return column.cast(pl.String).str.replace(r"(\.\d*?)0+$", "$1").str.replace(r"\.$", "")
    if kind == "time" and isinstance(dtype, pl.Date):
        column, dtype = column.cast(pl.Datetime("us")), pl.Datetime("us")
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is not None:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return column.cast(pl.Datetime("us")).cast(pl.String)
    if isinstance(dtype, pl.Struct) and len(dtype.fields) == 1 and dtype.fields[0].name in _EXTENDED:
        return canonical_text(column.struct.field(dtype.fields[0].name), kind).alias(name)
    if isinstance(dtype, pl.List | pl.Array | pl.Struct):
        if kind == "id":
            texts = pl.Series([UNUSABLE + A_LIST]).new_from_index(0, len(column))
            return texts.set(column.is_null(), None).alias(name)
        return None
    if dtype.is_integer() or isinstance(dtype, pl.Boolean | pl.Date | pl.Categorical | pl.Enum):
        return column.cast(pl.String)
    return pl.Series(name, [None], dtype=pl.String).new_from_index(0, len(column)) if dtype == pl.Null else None


def _floats(column: pl.Series, kind: Kind) -> pl.Series:
    wide = column.cast(pl.Float64)
    whole = ((wide == wide.floor()) & (wide.abs() < 2**53)).fill_null(False)
    # Float32 is written as float32: its 3.9 is the text 3.9, and not the digits of the nearest float64.
    digits = wide.set(~whole, None).cast(pl.Int64).cast(pl.String)
    texts = (digits + ".0" if kind == "id" else digits).zip_with(whole, column.cast(pl.String))
    if kind == "id":
        exact = 2**53 if column.dtype == pl.Float64 else 2**24
        texts = texts.set((wide.abs() >= exact).fill_null(False), UNUSABLE + INEXACT)
    # Last, for of NaN polars says that it is larger than any number.
    return texts.set(wide.is_nan().fill_null(False), None)


def _vector_column(column: pl.Series) -> pl.Series:
    dtype = column.dtype
    if isinstance(dtype, pl.List | pl.Array) and (dtype.inner.is_numeric() or dtype.inner == pl.String):
        return column.cast(_VECTOR, strict=False)
    if dtype == pl.String:
        # Delimited text and databases have no lists: "[0.5, 1]" and "0.5 1" are read alike.
        return column.str.extract_all(_NUMBERS).cast(_VECTOR, strict=False)
    return _vectors(python_cells(column))


def _id_lists(cells: Sequence[Any]) -> pl.Series:
    found: list[list[str | None] | None] = []
    for cell in cells:
        try:
            found.append([_valid(part) for part in cell_ids(cell) or ()])
        except _FLAWS:
            found.append(None)
    return pl.Series(found, dtype=_IDS)


def _vectors(cells: Sequence[Any]) -> pl.Series:
    found = [_vector(cell) for cell in cells]
    texts = pl.Series([cell if isinstance(cell, str) else None for cell in found], dtype=pl.String, strict=False)
    lists = pl.Series([cell if isinstance(cell, list) else None for cell in found], dtype=_VECTOR)
    if not texts.count():
        return lists
    return _vector_column(texts).zip_with(texts.is_not_null(), lists)


def _vector(cell: Any) -> list[float] | str | None:
    if isinstance(cell, pl.Series):
        cell = python_cells(cell)
    if isinstance(cell, list | tuple):
        return [_number(part) for part in cell]
    return None if cell is None or isinstance(cell, dict) else _valid(cell_text(cell))


def _number(part: Any) -> float:
    try:
        return math.nan if part is None or isinstance(part, bool) else float(part)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _strings(cells: list[str | None]) -> pl.Series:
    try:
        return pl.Series(cells, dtype=pl.String)
    except UnicodeError:
        return pl.Series([_valid(cell) for cell in cells], dtype=pl.String)


def _valid(text: str | None) -> str | None:
    # A JSON escape may be half of a character, which no text can hold.
    return text if text is None or text.isascii() else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _decimal(number: Decimal) -> str | None:
    if not number.is_finite():
        return None if number.is_nan() else "inf" if number > 0 else "-inf"
    if abs(number.adjusted()) > 512:
        return str(number)
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _moment(time: dt.datetime) -> str:
    if time.tzinfo is not None:
        try:
            time = time.astimezone(dt.UTC).replace(tzinfo=None)
        except OverflowError:
            return str(time)
    return time.isoformat(sep=" ", timespec="microseconds")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\\x" + data.hex()


def _json(cell: Any) -> str:
    return json.dumps(cell, ensure_ascii=False, default=str)
