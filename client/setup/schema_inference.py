"""What a table may be to a platform, guessed from its columns' names and types; a person reads the guess and corrects it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from client.config.table_location import Column
from client.setup.list_columns import holds_lists, holds_marks
from client.setup.table_preview import Sample
from client.setup.unread_times import time_column
from client.sources.cell_values import as_times
from client.sources.item_keys import item_keys
from client.sources.time_formats import likely_formats

_WORDS = {
    role: frozenset(words.split())
    for role, words in {
        "user": "user users userid uid customer client member subscriber reader viewer visitor account person reviewer buyer "
        "patron listener kunde kundin kundennr kundennummer nutzer benutzer kaeufer utilisateur acheteur usuario cliente klant "
        "gebruiker utente",
        "item": "item items itemid iid product sku movie film book article track song artist video game asin isbn news doc "
        "document listing show episode album recipe place artikel artikelnr produkt buch produit article livre producto articulo "
        "libro prodotto articolo produto",
        "friend": "friend friends friendid follower followee follows followed trusts trusted trustee",
        "event": "event action verb interaction behavior behaviour what aktion ereignis evenement evento accion",
        "value": "rating ratings score stars value weight plays playtime hours count bewertung puntuacion valoracion",
        "time": "time timestamp date at when created ts datetime clicked rated watched bought datum zeit zeitpunkt "
        "horodatage fecha data ora",
        "text": "text review comment note tag body message",
        "title": "title name headline titel bezeichnung titre intitule titulo titolo naam",
        "description": "description summary abstract tagline plot body content overview",
        "category": "category categories genre genres department section topic class kind kategorie warengruppe rubrik categorie "
        "rubrique categoria",
        "price": "price cost preis prix precio prezzo preco prijs",
        "head": "head subject",
        "relation": "relation predicate",
        "tail": "tail object",
    }.items()
}
_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("isbn", "isbn13", "isbn10"), "isbn"),
    **dict.fromkeys(("gtin", "gtin13", "gtin14", "ean", "ean13", "upc", "barcode"), "gtin"),
    **{word: word for word in ("asin", "imdb", "tmdb", "mbid", "doi", "issn", "isrc")},
    **{f"{word}id": word for word in ("imdb", "tmdb")},
}
"""A word of a column's name -> the kind of public key that it holds: what the items of two platforms are found by."""
_NAMING = frozenset(("follower", "truster", "trustor"))
_STRENGTH = {"view": 0.2, "impression": 0.0, "hide": 0.0, "click": 0.3, "like": 0.8, "cart": 0.5, "buy": 1.0, "purchase": 1.0}


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A source that a table may be.

    Args:
        kind: As the platform file calls it.
        columns: Role -> column.
        events: Event -> weight, where there are events.
        threshold: Value from which an item is liked, where there are values.
        texts, numbers: Further columns.
        keys: Kind of public key, where a column holds one.
        width: How many numbers most vectors have.
        explode: Whether the column of items, or of friends, holds lists.
        time_format: How times are written, where they are not read without it.
        remarks: What the person should look at.
    """

    kind: str
    columns: Mapping[str, str]
    events: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    texts: Sequence[str] = ()
    numbers: Sequence[str] = ()
    keys: str | None = None
    width: int | None = None
    explode: bool = False
    time_format: str | None = None
    remarks: Sequence[str] = ()


def guess(sample: Sample) -> Guess | None:
    """What the table is, or None if nothing in it speaks of users or items."""
    frame = sample.frame
    roles = column_roles(frame)
    if {"head", "relation", "tail"} <= set(roles):
        return Guess(kind="knowledge", columns=_picked(roles, "head", "relation", "tail"))
    lists = [name for name in frame.columns if holds_lists(frame[name])]
    # 'products_bought' is no time, however it is called.
    if several := {roles[role] for role in ("user", "event", "value", "time", "price") if roles.get(role) in lists}:
        roles = column_roles(frame.drop(several))
    free = [name for name in lists if name not in roles.values()]
    if "user" in roles and "item" not in roles and free:
        roles["item"] = free[0]
    vector = next(
        (name for name, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array) and name != roles.get("item")), None
    )
    owner = "item" if "item" in roles else "user" if "user" in roles else None
    if vector is not None and owner is not None and frame.schema[vector].inner.is_numeric():  # type: ignore[attr-defined]
        return Guess(
            kind="vectors",
            columns={owner: roles[owner], "vector": vector},
            width=next(
                iter(frame[vector].list.len().mode().to_list() if isinstance(frame.schema[vector], pl.List) else []), None
            ),
            remarks=["bound: longer vectors are clipped to it; declare it, do not take it from the data"],
        )
    roles |= _tied(frame, roles)
    if "user" in roles and "friend" in roles:
        return Guess(
            kind="social",
            columns=_picked(roles, "user", "friend"),
            explode=roles["friend"] in lists,
            remarks=["influence: how many other users' examples one user may enter; 0 uses friends only when recommending"],
        )
    if "user" in roles and "item" in roles:
        if "text" in roles and _wordy(frame[roles["text"]]):
            time_format, remarks = time_written(frame[roles["time"]]) if "time" in roles else (None, [])
            columns = _picked(roles, "user", "item", "text", "time") | _stars(roles)
            return Guess(kind="reviews", columns=columns, time_format=time_format, remarks=remarks)
        return _interactions(frame, roles, explode=roles["item"] in lists)
    if "description" not in roles and "text" in roles:
        roles["description"] = roles["text"]
    if "item" in roles:
        return _items(frame, _picked(roles, "item", "title", "description", "category", "price"))
    if "user" in roles:
        columns = _picked(roles, "user")
        texts, numbers = _further(frame, columns)
        return Guess(kind="profiles", columns=columns, texts=texts, numbers=numbers) if texts or numbers else None
    if "title" in roles and "id" in {name.lower() for name in frame.columns}:
        own = next(name for name in frame.columns if name.lower() == "id")
        columns = {"item": own, **_picked(roles, "title", "description", "category", "price")}
        return _items(frame, columns, remarks=["item: is 'id' the items' id?"])
    return None


def interactions_of_reviews(sample: Sample) -> Guess:
    """What a table of reviews says of who met which item."""
    roles = column_roles(sample.frame)
    return _interactions(sample.frame, {role: column for role, column in roles.items() if role != "text"}, explode=False)


def unread(sample: Sample, made: Guess) -> list[str]:
    """The columns of a table that its guess does not speak of."""
    spoken = {*made.columns.values(), *made.texts, *made.numbers}
    return [name for name in sample.frame.columns if name not in spoken]


def _tied(frame: pl.DataFrame, roles: Mapping[str, str]) -> dict[str, str]:
    """Who names whom, in a table of two people of whom none is called a user: a follower names a followee."""
    if "user" in roles or "item" in roles:
        return {}
    naming = [name for name in frame.columns if _NAMING & set(_parts(name))]
    named = [name for name in frame.columns if name not in naming and _WORDS["friend"] & set(_parts(name))]
    return {"user": naming[0], "friend": named[0]} if naming and named else {}


def column_roles(frame: pl.DataFrame) -> dict[str, str]:
    """Role -> the first column whose name speaks of it; a column has one role."""
    roles: dict[str, str] = {}
    taken: set[str] = set()
    for role, words in _WORDS.items():
        for column in frame.columns:
            if column not in taken and words & set(_parts(column)):
                # 'user_name' is no id of a user, 'item_title' none of an item.
                if role in ("user", "item") and (_WORDS["title"] | _WORDS["description"] | _WORDS["category"]) & set(
                    _parts(column)
                ):
                    continue
                roles[role] = column
                taken.add(column)
                break
    return roles


def _items(frame: pl.DataFrame, columns: dict[str, str], *, remarks: Sequence[str] = ()) -> Guess:
    kind = None
    for column in frame.columns:
        named = next((_KEYS[word] for word in _parts(column) if word in _KEYS), None)
        if named is not None and _mostly_keys(frame[column], named):
            columns, kind = {**columns, "key": column}, named
            remarks = [*remarks, "key, keys: by these public keys other platforms find the items that they have, too"]
            break
        if named is not None:
            remarks = [*remarks, f"{column}: named as a public key ({named}), but most of its cells are none that can be read"]
    texts, numbers = _further(frame, columns)
    return Guess(kind="items", columns=columns, texts=texts, numbers=numbers, keys=kind, remarks=remarks)


def _mostly_keys(cells: pl.Series, kind: str) -> bool:
    # As a number a key has lost its leading zeros, which matters to few.
    whole = cells.cast(pl.Int64, strict=False) if cells.dtype.is_float() else cells
    there = whole.cast(pl.String, strict=False).drop_nulls()
    return len(there) > 0 and int((item_keys(there, kind) != "").sum()) * 2 >= len(there)


def time_written(cells: pl.Series) -> tuple[str | None, Sequence[str]]:
    """The `time_format` of times that are not read without one, and what to look at; None where they are, or none is known."""
    if cells.dtype != pl.String or 2 * as_times(cells, None).count() > cells.count() or not cells.count():
        return None, ()
    formats = likely_formats(cells).formats
    if len(formats) < 2:
        return next(iter(formats), None), ()
    others = " or ".join(f'"{one}"' for one in formats[1:])
    return formats[0], [f"time_format: the values do not tell whether it is {others}; whoever exported them knows"]


def threshold_of(values: pl.Series) -> float:
    """From which value on an item may be liked: the scale of the ratings, which is public, and not a figure of the data."""
    there = values.drop_nulls()
    return round(2 * float(there.quantile(0.4) or 0.0)) / 2 if len(there) else 0.0


def marked_remark(name: str) -> str:
    """What a draft says of a column of entries with a mark behind each."""
    return (
        f"{name}: entries end in -1 (clicked) or -0 (shown alone), which is not read; to use them, export a row for each entry "
        "with user, item, event and time"
    )


def _interactions(frame: pl.DataFrame, roles: Mapping[str, str], *, explode: bool) -> Guess:
    columns, remarks = _picked(roles, "user", "item", "time"), []
    events: dict[str, float] = {}
    threshold = None
    if "time" not in columns:
        owners = [frame[columns[role]] for role in ("user", "item") if role in columns]
        others: dict[Column, pl.Series] = {name: frame[name] for name in frame.columns if name not in roles.values()}
        if (found := time_column(others, owners)) is not None:
            columns["time"] = str(found[0])
            remarks.append(f"columns.time: {found[0]!r} was taken for the time by what it holds, not by its name")
    time_format, remark = time_written(frame[columns["time"]]) if "time" in columns else (None, ())
    remarks += remark
    if explode:
        remarks.append(f"explode: {columns['item']!r} was taken for lists of items; each entry is a row")
    remarks += [marked_remark(name) for name in frame.columns if name not in columns.values() and holds_marks(frame[name])]
    if "event" in roles and frame[roles["event"]].n_unique() <= 20:
        columns["event"] = roles["event"]
        names = sorted(str(value) for value in frame[roles["event"]].drop_nulls().unique())
        events = {name: _STRENGTH.get(name.lower(), 1.0) for name in names}
        remarks.append("events: how much each says that an item was liked, 0 to 1; one that is not named says nothing")
    if "value" in roles and frame[roles["value"]].dtype.is_numeric():
        columns["value"] = roles["value"]
        threshold = threshold_of(frame[roles["value"]])
        remarks.append("threshold: from this value on an item counts as liked")
    return Guess(
        kind="interactions",
        columns=columns,
        events=events,
        threshold=threshold,
        explode=explode,
        time_format=time_format,
        remarks=remarks,
    )


def _further(frame: pl.DataFrame, columns: Mapping[str, str]) -> tuple[list[str], list[str]]:
    texts, numbers = [], []
    for name, kind in frame.schema.items():
        if name in columns.values() or {"id", "password", "email", "phone", "mail", "address"} & set(_parts(name)):
            continue
        if kind.is_numeric() and not _KEYS.keys() & set(_parts(name)):
            numbers.append(name)
        elif kind == pl.String and frame[name].n_unique() <= max(50, frame.height // 2):
            texts.append(name)
    return texts[:8], numbers[:8]


def _stars(roles: Mapping[str, str]) -> dict[str, str]:
    return {"stars": roles["value"]} if "value" in roles else {}


def _picked(roles: Mapping[str, str], *wanted: str) -> dict[str, str]:
    return {role: roles[role] for role in wanted if role in roles}


def _wordy(column: pl.Series) -> bool:
    if column.dtype != pl.String or not len(column):
        return False
    return float(column.drop_nulls().str.len_chars().mean() or 0.0) > 3  # type: ignore[arg-type]


def _parts(name: str) -> list[str]:
    """The words of a column's name.

    >>> _parts("viewerId"), _parts("Book-Title"), _parts("rated_at")
    (['viewer', 'id'], ['book', 'title'], ['rated', 'at'])
    """
    return [word for word in re.split(r"[^a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower()) if word]
