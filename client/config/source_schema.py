"""The kinds of source that a platform file may name, and what each may say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field, ValidationInfo, model_validator

from client.config.table_location import AsTuple, Column, Columns, FilePath, FilePaths, Frozen, Linked, Lookup, Reading
from shared.base.nearest_names import meant
from shared.base.settings import Finite, Positive


class NumberRange(Frozen):
    """Declared public bounds of a number, and the words for its equally wide buckets.

    Bounds are declared and never taken from the data, so neither a word nor a coordinate tells of other rows.

    Args:
        min: The least number; below it a number is left out and counted, and its row stays.
        max: The greatest number, likewise.
        buckets: How many equally wide buckets there are; 5, or as many as there are words.
        words: A word for each bucket, from the lowest; by default a scale such as `low`, `medium`, `high`.
    """

    min: Finite
    max: Finite
    buckets: int | None = Field(None, ge=2, le=100)
    words: Annotated[tuple[str, ...] | None, AsTuple] = Field(None, min_length=2, max_length=100)

    @model_validator(mode="after")
    def _ordered(self) -> NumberRange:
        if not self.min < self.max:
            raise ValueError(f"min must be below max, found {self.min} and {self.max}")
        if self.words is not None and self.buckets not in (None, len(self.words)):
            raise ValueError(f"{self.buckets} buckets need as many words, found {len(self.words)}")
        return self


class Flags(Frozen):
    """Adjacent columns of 0 and 1; each 1 is a category word.

    Args:
        first: The first of these columns.
        names: The word of each, in their order.
    """

    first: Column
    names: Annotated[tuple[str, ...], AsTuple] = Field(min_length=1)


class Source(Reading):
    """What every source has: a reading, the columns of its roles, and words for codes.

    Args:
        kind: What the rows say; it decides which further keys there are.
        columns: Role -> column. A role that is not named is looked up by its own name in the header or schema; in JSON lines of
            users' rows, which have neither, a role that is not required is read only if it is named. Columns that `text`,
            `values` and `numbers` speak of may be given a name here too, and are then shown under it.
        lookup: Role -> table that replaces its codes by words.
        tokens: Most tokens that the source's text takes of a sequence; by default a share of it (`client/examples/texts.py`).
    """

    roles: ClassVar[tuple[str, ...]] = ()

    kind: str
    columns: dict[str, Columns] = Field(default_factory=dict)
    lookup: dict[str, Lookup] = Field(default_factory=dict)
    tokens: int | None = Field(None, ge=1, le=512)

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
                    said = f"{key}.{name} is no role of kind '{self.kind}'{meant(name, sorted(known))}"
                    raise ValueError(f"{said}; expected one of: {', '.join(sorted(known))}")
        for name, column in self.columns.items():
            if isinstance(column, tuple) and name != "vector":
                raise ValueError(f"columns.{name}: expected one column, found {list(column)}")
        if self.format == "npy" and self.kind != "vectors":
            raise ValueError("format 'npy' is for kind 'vectors'")
        return self


KeyKind: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
"""What a public key is: `isbn`, a book's of 10 or 13 digits; `gtin`, a product's (UPC, EAN) of 8 to 14 digits; any other name
("imdb", "musicbrainz") for a key that counts as it is spelled. Keys of two kinds are never the same."""


class InteractionsSource(Source):
    """Who met which item: at least `user` and `item`.

    Args:
        events: Event -> weight: how much it says that the user likes the item, from 0 (known, and no more) on. What has a weight
            above 0 is liked, and counts as one like in all that is released or trained. Where it predicts the platform's users
            better, an item of a history counts by its weight in the platform's own and fused models. Where an event is not
            spelled so, capital and small letters do not matter. With this key the source needs a column `event`.
        threshold: Value from which on the item counts as liked; below it, it is known and no more. Needs a column `value`.
        time_format: How times are written: `unix`, `unix-ms`, `unix-us`, `unix-ns` (counted from 1970), `excel` (days since
            1899-12-30), or a strptime format (`%d/%m/%Y %H:%M`; with `%z` it has a zone, else it is UTC). Without it each time is
            read by itself: numbers of 8, 12 or 14 digits that begin as a date does are one (20191001), other numbers count from
            1970 in seconds, milliseconds, microseconds or nanoseconds by their size, and texts are ISO 8601 (`2018-07-07T22:09Z`,
            `2018-07-07 22:09:11 UTC`) or of a form that can mean one thing alone (`07.07.2018`, `Jul 7, 2018`).
            A row without a time is before all others of its user.
        weight: `log` makes an interaction's weight grow with the logarithm of its value, as for counts of plays; what a weight
            does, `events` says.
        explode: Whether a row whose item is a list is a row for each of its entries: a list of the file's own type, or a text
            such as `101, 103` or `N1 N2`. Without it a list is refused, since it is no id.
    """

    roles = ("user", "item", "event", "value", "time")

    kind: Literal["interactions"]
    events: dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None = None
    threshold: Finite | None = None
    time_format: str | None = Field(None, min_length=1, max_length=100)
    weight: Literal["none", "log"] = "none"
    explode: bool = False


class _Described(Source):
    """A source whose rows describe somebody or something.

    Args:
        text: Further columns that enter the text, each behind its name.
        numbers: Column -> its declared bounds; it enters the text as a word, and the model as a coordinate.
    """

    text: Annotated[tuple[Column, ...], AsTuple] = ()
    numbers: dict[str, NumberRange] = Field(default_factory=dict)

    def further(self) -> Iterable[str | int]:
        return (*self.text, *self.numbers)


class ItemsSource(_Described):
    """The public item table; its ids are the catalogue, and whatever it says is public.

    Args:
        keys: What the column of role `key` holds: items' public keys, by which platforms find out what they have in common
            (`client/sources/item_keys.py`). Without that column no item has a key, and a platform has items in common only
            with those whose whole catalogue is the same.
        flags: Columns of 0 and 1, each of which is a category.
    """

    roles = ("item", "title", "description", "category", "price", "key")

    kind: Literal["items"]
    keys: KeyKind = "id"
    flags: Flags | None = None


class CatalogueFile(Reading):
    """A public list of the items that there are, for a platform without a source of kind `items`.

    Args:
        column: The column that holds the items' ids.
    """

    column: Column = "item"


FROM_INTERACTIONS = "from-interactions"
"""The catalogue is whatever users met: for simulations alone."""


def catalogue_of(value: object, info: ValidationInfo) -> CatalogueFile | Literal["from-interactions"] | None:
    """What the platform file's `catalogue` says."""
    if value is None or isinstance(value, CatalogueFile):
        return value
    if value == FROM_INTERACTIONS:
        return "from-interactions"
    if not isinstance(value, dict):
        raise ValueError(f"expected a table with 'path' and 'column', or '{FROM_INTERACTIONS}'")
    return CatalogueFile.model_validate(value, context=info.context)


class ProfilesSource(_Described):
    """What the platform knows of its users.

    Args:
        values: Column -> code -> word, for codes that are no words: shown without the column's name.
    """

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
    """Users' texts about items: reviews, tags.

    Args:
        public: Whether anybody may read them, as on a page of reviews. Then they enter items' texts unchanged and without noise,
            so the privacy guarantee does not cover them: anybody can read one user's review, and the model is trained on it.
        time_format: How times are written, as for `interactions`.
    """

    roles = ("user", "item", "text", "stars", "time")

    kind: Literal["reviews"]
    public: bool = False
    time_format: str | None = Field(None, min_length=1, max_length=100)


class SocialSource(Source):
    """Who names whom as a friend.

    Args:
        influence: Greatest number of other users' training examples that one user's history may enter.
        friends: Greatest number of friends shown in one example.
        explode: Whether a row whose friend is a list is a row for each of its entries.
    """

    roles = ("user", "friend")

    kind: Literal["social"]
    influence: int = Field(0, ge=0, le=1000)
    friends: int = Field(3, ge=1, le=1000)
    explode: bool = False


class KnowledgeSource(Source):
    """Triples about items: head, relation, tail.

    Args:
        links: A table that says which entity an item is, with the columns `item` and `entity`; without it items are entities.
        names: A table that says how an entity is called, with the columns `entity` and `name`.
        neighbours: Phrases of an item's text, at most.
        entities: What kind of public key the entities' ids are ("wikidata", "freebase"), as `keys` of items: an entity of another
            platform under the same key is the same one. Items that are entities without `links` are known by their own keys.
        same: A table of cross-references, with the columns `entity` and `key`: further public keys of an entity, each with its
            kind before it ("isbn:9780306406157").
        publish: Whether `fedfuse facts` may write what the graph says of the items, under their public keys and those of the
            entities, into a file for other platforms.
        elsewhere: Such files of other platforms, or folders or patterns of them; one of this platform is passed over. What they
            say of the entities that items here are or have is a part of the score.
    """

    roles = ("head", "relation", "tail")

    kind: Literal["knowledge"]
    links: Linked | None = None
    names: Linked | None = None
    neighbours: int = Field(4, ge=1, le=100)
    entities: KeyKind | None = None
    same: Linked | None = None
    publish: bool = False
    elsewhere: FilePaths | None = Field(None, validate_default=False)

    @model_validator(mode="after")
    def _link_roles(self) -> KnowledgeSource:
        for key, linked, roles in (
            ("links", self.links, ("item", "entity")),
            ("names", self.names, ("entity", "name")),
            ("same", self.same, ("entity", "key")),
        ):
            for name in linked.columns if linked is not None else ():
                if name not in roles:
                    raise ValueError(f"{key}.columns.{name}: expected one of: {', '.join(roles)}")
        return self


class VectorsSource(Source):
    """A precomputed embedding per user or per item.

    Args:
        ids: For a `.npy` matrix, the text file with one id per line; `columns` says whose, as in `{ item = 1 }`.
        bound: Declared public L2 bound; longer vectors are clipped to it, and all are divided by it.
        width: Numbers of a vector in one column of lists; others are dropped. Users' vectors need it: no row may decide it.
    """

    roles = ("user", "item", "vector")

    kind: Literal["vectors"]
    ids: FilePath | None = Field(None, validate_default=False)
    bound: Positive = 1.0
    width: int | None = Field(None, ge=1, le=1 << 16)

    @model_validator(mode="after")
    def _owner(self) -> VectorsSource:
        if "user" in self.columns and "item" in self.columns:
            raise ValueError("columns: vectors belong to users or to items, expected exactly one of 'user', 'item'")
        matrix = self.path is not None and any(self.format_of(path) == "npy" for path in self.path)
        if matrix != (self.ids is not None):
            raise ValueError("'ids' and a .npy matrix need each other")
        if self.width is not None and (matrix or isinstance(self.columns.get("vector"), tuple)):
            raise ValueError("'width' is for one column of lists; a matrix and a list of columns have their own")
        if matrix and (len(self.path or ()) != 1 or not {"user", "item"} & set(self.columns)):
            raise ValueError("a .npy matrix is one file, and 'columns' says whose its ids are: { item = 1 } or { user = 1 }")
        return self


AnySource = InteractionsSource | ItemsSource | ProfilesSource | ReviewsSource | SocialSource | KnowledgeSource | VectorsSource
ROLE_WORDS = {
    "user": "the user's id",
    "item": "the item's id",
    "event": "what happened, for `events`",
    "value": "a rating or a count, for `threshold` and `weight`",
    "time": "when it was, for `time_format`",
    "title": "the item's short public name",
    "description": "what it is, in sentences",
    "category": "what kind of thing it is; a list, or parts between bars",
    "price": "what it costs",
    "key": "its public key, for `keys`",
    "text": "what the user wrote",
    "stars": "how the user rated the item",
    "friend": "the id of a user whom the user names",
    "head": "the entity that is spoken of",
    "relation": "what is said of it",
    "tail": "the entity or the text that it is so related to",
    "vector": "a column of lists, or a list of columns of numbers",
}
"""What the column of each role holds."""
KINDS: dict[str, type[AnySource]] = {get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(AnySource)}


def source_of(value: object, info: ValidationInfo) -> AnySource:
    """The source that a table of the platform file describes; its `kind` says which class checks it."""
    if isinstance(value, AnySource):
        return value
    kind = value.get("kind") if isinstance(value, dict) else None
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ValueError(f"kind is {kind!r}{meant(str(kind), KINDS)}; expected one of: {', '.join(KINDS)}")
    return model.model_validate(value, context=info.context)
