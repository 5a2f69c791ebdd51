"""Where a table is and how its bytes are read: the part of a platform file that every source has.

Paths are named from the platform file's folder; `${NAME}` is replaced by an environment variable, so that no password need
be in a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from client.config.missing_values import USUAL_MISSING
from shared.base.nearest_names import meant

MOST_COLUMNS = 1 << 16
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_RELATIVE_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)(.+)$")
SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    ".npy": "npy",
}
"""What a file holds by its suffix; any other is delimited text."""
DELIMITED = (".csv", ".tsv", ".txt", ".dat")
"""Suffixes of delimited text; other files may hold it, too."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of compressed files; the one before says what is in them."""


def _expanded(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("expected a text that is not empty")

    def variable(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set; expected it to hold what stands for ${{{name}}}")
        return os.environ[name]

    return _VARIABLE.sub(variable, value)


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def _path(value: object, info: ValidationInfo) -> Path:
    return value if isinstance(value, Path) else _folder(info) / _expanded(value)


def _paths(value: object, info: ValidationInfo) -> object:
    if not value:
        raise ValueError("expected a path or a list of paths")
    return tuple(_path(part, info) for part in (value if isinstance(value, list | tuple) else [value]))


def _url(value: object, info: ValidationInfo) -> str:
    # A SQLite file is named as any other path: from the platform file's folder.
    return _RELATIVE_SQLITE.sub(lambda match: f"{match.group(1)}{(_folder(info) / match.group(2)).absolute()}", _expanded(value))


def _column(value: object) -> str | int:
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int)
        or not value
        or (isinstance(value, int) and not 1 <= value <= MOST_COLUMNS)
    ):
        raise ValueError(f"a column is a name, or a position counted from 1, at most {MOST_COLUMNS}")
    return value


def _columns(value: object) -> str | int | tuple[str | int, ...]:
    return tuple(_column(part) for part in value) if isinstance(value, list | tuple) and value else _column(value)


def _encoding(value: str) -> str:
    try:
        b" ".decode(value, "replace")
    except (LookupError, UnicodeError, ValueError):
        raise ValueError("expected the name of a text encoding, such as utf-8 or latin-1") from None
    return value


Column = Annotated[str | int, PlainValidator(_column)]
"""A column's name, or its position counted from 1."""
Columns = Annotated[str | int | tuple[str | int, ...], PlainValidator(_columns)]
AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
FilePath = Annotated[Path, BeforeValidator(_path)]
FilePaths = Annotated[tuple[Path, ...], BeforeValidator(_paths)]


class Frozen(BaseModel):
    """A table of the platform file: strict types, no unknown key, unchangeable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            known = [name for name, field in cls.model_fields.items() if not field.exclude]
            said = ", ".join(f"{key!r}{meant(str(key), known)}" for key in unknown)
            raise ValueError(f"unknown key {said}; expected one of: {', '.join(known)}")
        return values


class Reading(Frozen):
    """Where a table is and how its bytes are read.

    Args:
        path: Files of one schema, read one after the other: a file, a folder of part files (names that begin with `_` or `.` are
            passed over), a pattern (`exports/part-*.csv`), or a list of these. A file may be compressed (`.gz`, `.zst`, `.bz2`,
            `.xz`). Part files of a folder or a pattern may be empty.
        url: SQLAlchemy URL, with either `table` or `query`; may hold a password, so it is not shown. In this and in paths
            `${NAME}` is an environment variable.
        table: A table of the database, with its schema before it where it has one (`crm.orders`).
        query: A query in its place.
        format: What the files hold; by default as their suffixes say (`.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, `.npy`), and
            delimited text for any other.
        separator: The character between the cells of delimited text; by default a tab in `.tsv` files, else a comma.
        encoding: Of delimited text and JSON lines. Users' rows need one in which a line end is a byte of its own, as UTF-8 is.
        header: Whether the first line of delimited text names the columns; without it columns are positions from 1 on.
        quote: The quotation mark of delimited text; '' reads quotation marks as ordinary characters.
        escape: The character that takes the meaning of the one behind it, in most such exports a backslash; by default none. A
            row that can be read only with a backslash before its quotation marks is read so in any case.
        comment: What a line begins with that is no row; by default no line does, but for lines before the header that begin with
            `#` and hold no separator.
        ragged: Rows with more columns than the header are cut instead of dropped.
        fields: Of delimited text without a header, how many columns a row has at most; without it, rows of any length are read.
        decimal: What is before the decimals of a number: a point, or a comma.
        missing: What a cell holds, apart from space around it, where there is no value. By default what programs usually write:
            `\\N`, `NULL`, `nan`, `None`, `<NA>`, `N/A` and their like; an empty list reads them as they are written.
        carriage_returns: Whether a carriage return alone ends a line, too, as on old Macs and in joined files. By default it does
            where the header's line ends so; false says that it never does.
        line_breaks: Whether quoted text may hold line ends. False says that a row is a line: then a quotation mark that is never
            closed cannot reach another row. By default true of public tables, and false of users' rows, where one user's mark
            must not take another's row away.
    """

    path: FilePaths | None = Field(None, validate_default=False)
    url: Annotated[str | None, BeforeValidator(_url)] = Field(None, repr=False, validate_default=False)
    table: str | None = Field(None, min_length=1)
    query: str | None = Field(None, min_length=1)
    format: Literal["csv", "jsonl", "parquet", "npy"] | None = None
    separator: str | None = Field(None, min_length=1, max_length=16, pattern=r"^[^\r\n\x00]+$")
    encoding: Annotated[str, Field(max_length=40), AfterValidator(_encoding)] = "utf-8"
    header: bool = True
    quote: str = Field('"', pattern=r"^[!-~]?$")
    escape: str = Field("", pattern=r"^[!-~]?$")
    comment: str | None = Field(None, min_length=1, max_length=16)
    ragged: bool = False
    fields: int | None = Field(None, ge=1, le=MOST_COLUMNS)
    decimal: Literal[".", ","] = "."
    missing: Annotated[tuple[str, ...], AsTuple] = USUAL_MISSING
    carriage_returns: bool | None = None
    line_breaks: bool | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Reading:
        if (self.path is None) == (self.url is None):
            raise ValueError("expected either 'path' or 'url'")
        if self.url is not None and (self.table is None) == (self.query is None):
            raise ValueError("'url' needs either 'table' or 'query'")
        if self.url is None and (self.table or self.query):
            raise ValueError("'table' and 'query' need a 'url'")
        if self.fields is not None and self.header:
            raise ValueError("'fields' is for files without a header (header = false): a header says how many columns there are")
        if self.quote and self.quote == self.separator:
            raise ValueError("'quote' and 'separator' are the same character")
        if self.escape and self.escape in (self.quote, self.separator):
            raise ValueError("'escape' is the same character as 'quote' or 'separator'; a mark that is doubled needs no 'escape'")
        return self

    def format_of(self, path: Path) -> str:
        """The file's format: as declared, else by its suffix; whatever is unknown is delimited text."""
        return self.format or SUFFIXES.get(suffix_of(path), "csv")

    def separator_of(self, path: Path) -> str:
        """The separator of delimited text: as declared, else tab for `.tsv`, else comma."""
        return self.separator or ("\t" if suffix_of(path) == ".tsv" else ",")


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, in small letters, behind that of its compression.

    >>> suffix_of(Path("a/orders.CSV.gz")), suffix_of(Path("part-00000"))
    ('.csv', '')
    """
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


class Lookup(Reading):
    """A table that says the word for a code: rows of `key`, `value`.

    Args:
        key: The column of the codes.
        value: The column of the words.
    """

    key: Column
    value: Column


class Linked(Reading):
    """A second table of a knowledge source.

    Args:
        columns: Role -> column; without it the columns carry the roles' own names.
    """

    columns: dict[str, Column] = Field(default_factory=dict)
