"""The platform file: one TOML that names a platform, its privacy budget and its sources.

It stays on the platform. Everything is checked when it is loaded; a mistake is answered with file, key, what was
found and what is expected. Whether the sources themselves can be read is known only when `client/sources` reads them.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from shared.errors import InputError
from shared.settings import Finite, Positive, explain

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_RELATIVE_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)(.+)$")
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".npy": "npy"}


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
    if isinstance(value, bool) or not isinstance(value, str | int) or not value or (isinstance(value, int) and value < 1):
        raise ValueError("a column is a name, or a position counted from 1")
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
_AsTuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
FilePath = Annotated[Path, BeforeValidator(_path)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        unknown = [key for key in values if key not in cls.model_fields] if isinstance(values, dict) else []
        if unknown:
            known = ", ".join(name for name, field in cls.model_fields.items() if not field.exclude)
            raise ValueError(f"unknown key {', '.join(map(repr, unknown))}; expected one of: {known}")
        return values


class Reading(_Frozen):
    """Where a table stands and how its bytes are read.

    Args:
        path: Files of one schema, read one after the other.
        url: SQLAlchemy URL, with either `table` or `query`; may hold a password, so it is not shown.
        quote: The quotation mark of delimited text; '' reads quotation marks as ordinary characters.
        ragged: Rows with more columns than the first row are cut instead of dropped.
    """

    path: Annotated[tuple[Path, ...] | None, BeforeValidator(_paths)] = Field(None, validate_default=False)
    url: Annotated[str | None, BeforeValidator(_url)] = Field(None, repr=False, validate_default=False)
    table: str | None = Field(None, min_length=1)
    query: str | None = Field(None, min_length=1)
    format: Literal["csv", "jsonl", "parquet", "npy"] | None = None
    separator: str | None = Field(None, min_length=1, max_length=16, pattern=r"^[^\r\n\x00]+$")
    encoding: Annotated[str, Field(max_length=40), AfterValidator(_encoding)] = "utf-8"
    header: bool = True
    quote: str = Field('"', pattern=r"^[!-~]?$")
    ragged: bool = False

    @model_validator(mode="after")
    def _one_place(self) -> Reading:
        if (self.path is None) == (self.url is None):
            raise ValueError("expected either 'path' or 'url'")
        if self.url is not None and (self.table is None) == (self.query is None):
            raise ValueError("'url' needs either 'table' or 'query'")
        if self.url is None and (self.table or self.query):
            raise ValueError("'table' and 'query' need a 'url'")
        if self.quote and self.quote == self.separator:
            raise ValueError("'quote' and 'separator' are the same character")
        return self

    def format_of(self, path: Path) -> str:
        """The file's format: as declared, else by its suffix; whatever is unknown is delimited text."""
        return self.format or _SUFFIXES.get(path.suffix.lower(), "csv")

    def separator_of(self, path: Path) -> str:
        """The separator of delimited text: as declared, else tab for `.tsv`, else comma."""
        return self.separator or ("\t" if path.suffix.lower() == ".tsv" else ",")


class Lookup(Reading):
    """A table that says the word for a code: rows of `key`, `value`."""

    key: Column
    value: Column


class Linked(Reading):
    """A second table of a knowledge source; without `columns` its columns carry the roles' own names."""

    columns: dict[str, Column] = Field(default_factory=dict)


class NumberRange(_Frozen):
    """Declared public bounds of a number, and the words for its equally wide buckets.

    Bounds are declared and never taken from the data, so neither a word nor a coordinate tells of other rows.
    """

    min: Finite
    max: Finite
    buckets: int | None = Field(None, ge=2, le=100)
    words: Annotated[tuple[str, ...] | None, _AsTuple] = Field(None, min_length=2, max_length=100)

    @model_validator(mode="after")
    def _ordered(self) -> NumberRange:
        if not self.min < self.max:
            raise ValueError(f"min must be below max, found {self.min} and {self.max}")
        if self.words is not None and self.buckets not in (None, len(self.words)):
            raise ValueError(f"{self.buckets} buckets need as many words, found {len(self.words)}")
        return self


class Flags(_Frozen):
    """Columns of 0 and 1 that stand side by side; each 1 is a category word."""

    first: Column
    names: Annotated[tuple[str, ...], _AsTuple] = Field(min_length=1)


class Source(Reading):
    """What every source has: a reading, the columns of its roles, and words for codes.

    Args:
        columns: Role -> column. A role that is not named is looked up by its own name. Columns that `text`, `values`
            and `numbers` speak of may be given a name here too, and are then shown under it.
        lookup: Role -> table that replaces its codes by words.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    kind: str
    columns: dict[str, Columns] = Field(default_factory=dict)
    lookup: dict[str, Lookup] = Field(default_factory=dict)

    def further(self) -> Iterable[str | int]:
        """Columns without a role that the source's keys speak of."""
        return ()

    def column(self, role: str | int) -> str | int:
        """The column of a role, or of a further column by its given or own name or position."""
        column = self.columns.get(role, role) if isinstance(role, str) else role
        assert not isinstance(column, tuple)
        return column

    @model_validator(mode="after")
    def _names(self) -> Source:
        known = {*self.roles, *(name for name in self.further() if isinstance(name, str))}
        for key, names in (("columns", self.columns), ("lookup", self.lookup)):
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"{key}.{name} is no role of kind '{self.kind}'; expected one of: {', '.join(sorted(known))}"
                    )
        for name, column in self.columns.items():
            if isinstance(column, tuple) and name != "vector":
                raise ValueError(f"columns.{name}: expected one column, found {list(column)}")
        if self.format == "npy" and self.kind != "vectors":
            raise ValueError("format 'npy' is for kind 'vectors'")
        return self


class InteractionsSource(Source):
    """Who met which item: at least `user` and `item`."""

    roles = ("user", "item", "event", "value", "time")

    kind: Literal["interactions"]
    events: dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    threshold: Finite | None = None
    time_format: str | None = Field(None, min_length=1, max_length=100)
    weight: Literal["none", "log"] = "none"


class _Described(Source):
    text: Annotated[tuple[Column, ...], _AsTuple] = ()
    numbers: dict[str, NumberRange] = Field(default_factory=dict)

    def further(self) -> Iterable[str | int]:
        return (*self.text, *self.numbers)


class ItemsSource(_Described):
    """The public item table; its ids are the catalogue."""

    roles = ("item", "title", "description", "category", "price")

    kind: Literal["items"]
    flags: Flags | None = None


class ProfilesSource(_Described):
    """What the platform knows of its users."""

    roles = ("user",)

    kind: Literal["profiles"]
    values: dict[str, dict[str, str]] = Field(default_factory=dict)

    def further(self) -> Iterable[str | int]:
        """Columns without a role that the source's keys speak of."""
        return (*super().further(), *self.values)

    @model_validator(mode="after")
    def _says_something(self) -> ProfilesSource:
        if not (self.text or self.numbers or self.values):
            raise ValueError("profiles need at least one of 'text', 'numbers', 'values'")
        return self


class ReviewsSource(Source):
    """Users' texts about items: reviews, tags."""

    roles = ("user", "item", "text", "stars", "time")

    kind: Literal["reviews"]
    public: bool = False
    time_format: str | None = Field(None, min_length=1, max_length=100)


class SocialSource(Source):
    """Who names whom as a friend.

    Args:
        influence: Greatest number of other users' training examples that one user's history may enter.
        friends: Greatest number of friends shown in one example.
    """

    roles = ("user", "friend")

    kind: Literal["social"]
    influence: int = Field(0, ge=0, le=1000)
    friends: int = Field(3, ge=1, le=1000)


class KnowledgeSource(Source):
    """Triples about items; `links` says which entity an item is, `names` how an entity is called."""

    roles = ("head", "relation", "tail")

    kind: Literal["knowledge"]
    links: Linked | None = None
    names: Linked | None = None
    neighbours: int = Field(4, ge=1, le=100)

    @model_validator(mode="after")
    def _link_roles(self) -> KnowledgeSource:
        for key, linked, roles in (("links", self.links, ("item", "entity")), ("names", self.names, ("entity", "name"))):
            for name in linked.columns if linked is not None else ():
                if name not in roles:
                    raise ValueError(f"{key}.columns.{name}: expected one of: {', '.join(roles)}")
        return self


class VectorsSource(Source):
    """A precomputed embedding per user or per item.

    Args:
        ids: For a `.npy` matrix, the text file with one id per line; `columns` says whose, as in `{ item = 1 }`.
        bound: Declared public L2 bound; longer vectors are clipped to it, and all are divided by it.
    """

    roles = ("user", "item", "vector")

    kind: Literal["vectors"]
    ids: FilePath | None = Field(None, validate_default=False)
    bound: Positive = 1.0

    @model_validator(mode="after")
    def _owner(self) -> VectorsSource:
        if "user" in self.columns and "item" in self.columns:
            raise ValueError("columns: vectors belong to users or to items, expected exactly one of 'user', 'item'")
        matrix = self.path is not None and any(self.format_of(path) == "npy" for path in self.path)
        if matrix != (self.ids is not None):
            raise ValueError("'ids' and a .npy matrix need each other")
        if matrix and (len(self.path or ()) != 1 or not {"user", "item"} & set(self.columns)):
            raise ValueError("a .npy matrix is one file, and 'columns' says whose its ids are: { item = 1 } or { user = 1 }")
        return self


AnySource = InteractionsSource | ItemsSource | ProfilesSource | ReviewsSource | SocialSource | KnowledgeSource | VectorsSource
_KINDS: dict[str, type[AnySource]] = {
    "interactions": InteractionsSource,
    "items": ItemsSource,
    "profiles": ProfilesSource,
    "reviews": ReviewsSource,
    "social": SocialSource,
    "knowledge": KnowledgeSource,
    "vectors": VectorsSource,
}


def _source(value: object, info: ValidationInfo) -> AnySource:
    if isinstance(value, AnySource):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ValueError(f"kind is {kind!r}; expected one of: {', '.join(_KINDS)}")
    return model.model_validate(value, context=info.context)


class Budget(_Frozen):
    """What the platform may spend on each of its users, over everything that it ever releases.

    Args:
        epsilon: Above 0, or inf: privacy off.
    """

    epsilon: float = Field(gt=0)
    delta: float = Field(1e-5, gt=0, lt=1)


class PlatformFile(_Frozen):
    """One platform, as its file says.

    Args:
        name: Public.
        users: Declared number of users; public, and never replaced by the counted one.
        privacy: The budget.
        sources: The source's name -> source, in the order of the file; at least one has interactions.
        state: Folder of the ledger, the caches and the keys; `.fedfuse/<name>` beside the file by default.
        path: Where the file stands.
    """

    name: str = Field(pattern=NAME)
    users: int = Field(ge=1, lt=1 << 53)
    privacy: Budget
    sources: dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[AnySource, PlainValidator(_source)]]
    state: FilePath
    path: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _interactions(self) -> PlatformFile:
        if not any(isinstance(source, InteractionsSource) for source in self.sources.values()):
            raise ValueError("sources: expected at least one source of kind 'interactions'")
        return self


def load(path: str | Path) -> PlatformFile:
    """The platform file at `path`, checked.

    Raises:
        InputError: the file is missing, is no TOML, or says something that is not expected; an environment variable
            in a path is not set.
    """
    file = Path(path).absolute()
    try:
        values = tomllib.loads(file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8", where=str(file), do="save the platform file as UTF-8 text") from None
    except OSError as error:
        raise InputError(f"the platform file cannot be opened: {error.strerror}", where=str(file), do="check the path") from None
    except (ValueError, RecursionError) as error:
        # tomllib names line and column; a path with a NUL byte ends here too.
        raise InputError(f"not valid TOML: {error}", where=str(file), do="mend the line that is named") from None
    if "path" in values:
        raise InputError("unknown key 'path'", where=str(file), do="a source's path stands in its own table, [sources.NAME]")
    values.setdefault("state", f".fedfuse/{values.get('name')}")
    try:
        return PlatformFile.model_validate({**values, "path": file}, context={"folder": file.parent})
    except ValidationError as error:
        raise InputError(explain(error), where=str(file), do="correct the keys named above") from None
