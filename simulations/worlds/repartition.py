"""A world dealt out: each platform becomes several of the same kind, each with a share of its users.

So it can be measured what it costs when the same users are spread over more and smaller platforms. A user goes to
the part that a hash of the id names, with every row of theirs: interactions, profile, reviews, ties, vectors. What is public
stays whole and where it is: items, knowledge, item vectors, and the tables that codes are looked up in.

A part's tables hold the columns that the platform file speaks of, as they were read: text stays text, rows that no part
could use (broken, without a user) are left out, everything else is cleaned by the part itself. A tie to somebody of
another part is one to somebody without interactions.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sql
import tomli_w

from client.config.platform_file import PlatformFile, load
from client.config.source_schema import (
    InteractionsSource,
    ReviewsSource,
    Source,
    VectorsSource,
)
from client.sources.ids import as_ids
from client.sources.readers.cells import Kind
from client.sources.readers.table_scan import reading
from client.sources.readers.text_encoding import id_lines
from client.sources.row_texts import text_name
from client.sources.source_rows import Wanted, read_table
from shared.base.errors import InputError
from simulations.worlds.files import write_folder, write_text
from simulations.worlds.world import World, open_world

MOST_PARTS = 1000

_READING = (
    "path",
    "url",
    "table",
    "query",
    "format",
    "separator",
    "encoding",
    "header",
    "quote",
    "ragged",
    "fields",
    "line_breaks",
)
_KINDS: dict[str, Kind] = {"user": "id", "friend": "id", "item": "id", "event": "id", "time": "time"}
_BEGINS_WITH_VARIABLE = re.compile(r"^\$\{([^}]+)\}")

README = """\
# A world dealt out

Each platform of `{world}` dealt to {parts} by a hash of the user's id (seed {seed}), by `fedfuse world deal`. Items,
knowledge and item vectors stay where they were; users' tables are here, one folder per part. They are as private as what they
were made of.
"""


def part_of(user: str, parts: int, *, seed: int = 0) -> int:
    """The part, from 0, that a user goes to.

    >>> [part_of(user, 4) for user in ("ada", "bob", "eve")]
    [1, 2, 2]
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\0{user}".encode()).digest()[:8]) % parts


def deal_world(world: World, folder: Path, *, parts: int, seed: int = 0) -> World:
    """Write the world in which each platform's users are dealt to `parts` platforms.

    Args:
        folder: New or empty.
        parts: 1 or more. Declared users are divided evenly, whatever the hash gives.
        seed: Another seed deals otherwise.

    Raises:
        InputError: a value is out of range, `folder` holds something, a source cannot be read, or a part got no
            interaction.
        StorageError: a file cannot be written.
    """
    if not 1 <= parts <= MOST_PARTS:
        raise InputError(f"parts is {parts}", where="dealing a world", do=f"a whole number between 1 and {MOST_PARTS}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("the folder is not empty", where=str(folder), do="name a new or empty folder")
    files = [load(path) for path in world.platforms]
    for file in files:
        if file.users < parts:
            raise InputError(f"{file.users} users are declared for {parts} parts", where=str(file.path), do="fewer parts")
    for file in files:
        _deal(file, folder, parts=parts, seed=seed)
    write_text(folder / "README.md", README.format(world=world.folder.name, parts=parts, seed=seed))
    return open_world(folder)


def _deal(file: PlatformFile, folder: Path, *, parts: int, seed: int) -> None:
    raw = tomllib.loads(file.path.read_bytes().decode("utf-8-sig"))
    names = [f"{file.name}-{part + 1}" for part in range(parts)]
    sources: list[dict[str, Any]] = [{} for _ in names]
    met = [0] * parts
    for name, source in file.sources.items():
        given = _anchored(raw["sources"][name], file.path.parent)
        if not _of_users(source):
            dealt: Dealt = [(given, 0)] * parts
        elif isinstance(source, VectorsSource) and source.ids is not None:
            dealt = _matrix(source, given, folder, names, name, seed=seed)
        else:
            dealt = _table(source, given, folder, names, name, seed=seed)
        for part, (table, rows) in enumerate(dealt):
            if table is not None:
                sources[part][name] = table
            if isinstance(source, InteractionsSource):
                met[part] += rows
    if not all(met):
        raise InputError(
            f"{met.count(0)} of {parts} parts of platform {file.name!r} got no interaction",
            where=str(file.path),
            do="deal it to fewer parts",
        )
    for part, name in enumerate(names):
        users = file.users // parts + (part < file.users % parts)
        table = {key: value for key, value in raw.items() if key not in ("name", "users", "sources", "state")}
        if isinstance(table.get("catalogue"), dict):
            table["catalogue"] = _anchored(table["catalogue"], file.path.parent)
        made = {"name": name, "users": users, **table, "sources": sources[part]}
        write_text(folder / f"{name}.toml", tomli_w.dumps(made))


Dealt = list[tuple[dict[str, Any] | None, int]]
"""For each part: the source's table in its platform file, or None if it got no row; and its rows."""


def _table(source: Source, given: dict[str, Any], folder: Path, names: list[str], name: str, *, seed: int) -> Dealt:
    wanted, labels = _wanted(source), {}
    read = read_table(source, None, wanted, source=name)
    frame = read.frame
    # Ids are settled over the whole table, as the platform itself would, and not over what a part happens to hold.
    for role in ("user", "friend", "item"):
        if role in frame.columns:
            frame = frame.with_columns(as_ids(frame[role]).alias(role))
    for number, column in enumerate(getattr(source, "text", ()), start=1):
        if isinstance(column, int):
            # Shown under the file's own name for the column. Without one it has a blank name here, which shows nothing.
            labels[column] = read.labels.get(text_name(column), " " * number)
    frame = frame.rename({text_name(column): label for column, label in labels.items()})

    table = {key: value for key, value in given.items() if key not in (*_READING, "columns", "text")}
    if "text" in given:
        table["text"] = [labels.get(column, column) for column in given["text"]]
    if isinstance(source, VectorsSource):
        vectors = [want.name for want in wanted if want.name != "user"]
        table["columns"] = {"user": "user", "vector": vectors if "vector" not in vectors else "vector"}
    dealt: Dealt = []
    for part, rows in zip(names, _split(frame, len(names), seed=seed), strict=True):
        path = folder / part / f"{name}.parquet"
        if rows.height:
            with write_folder(path) as draft:
                rows.write_parquet(draft, compression="zstd", statistics=False)
                draft.chmod(0o600)
        dealt.append(({"path": f"{part}/{path.name}", **table} if rows.height else None, rows.height))
    return dealt


def _matrix(source: VectorsSource, given: dict[str, Any], folder: Path, names: list[str], name: str, *, seed: int) -> Dealt:
    assert source.ids is not None and source.path is not None
    with reading(str(source.ids)):
        ids = id_lines(source.ids.read_bytes(), source.encoding)
    with reading(str(source.path[0])):
        matrix = np.load(source.path[0], mmap_mode="r", allow_pickle=False)
    if len(matrix) != len(ids):
        raise InputError(f"{len(ids)} ids for {len(matrix)} rows of the matrix", where=str(source.ids), do="one id per row")
    frame = pl.DataFrame({"user": as_ids(pl.Series(ids, dtype=pl.String))}).with_row_index("row")
    table = {key: value for key, value in given.items() if key not in ("path", "ids", "encoding", "format")}
    dealt: Dealt = []
    for part, rows in zip(names, _split(frame, len(names), seed=seed), strict=True):
        if rows.height:
            with write_folder(folder / part / f"{name}.npy") as draft:
                with draft.open("wb") as out:  # np.save would add a suffix to a name
                    np.save(out, matrix[rows["row"].to_numpy()], allow_pickle=False)
                draft.chmod(0o600)
            write_text(folder / part / f"{name}.ids", "".join(f"{user}\n" for user in rows["user"]))
            (folder / part / f"{name}.ids").chmod(0o600)
        made = {**table, "path": f"{part}/{name}.npy", "ids": f"{part}/{name}.ids"}
        dealt.append((made if rows.height else None, rows.height))
    return dealt


def _wanted(source: Source) -> list[Wanted]:
    """Every column that the source's keys may speak of, each under the name that finds it again."""
    if isinstance(source, VectorsSource):
        vector = source.columns.get("vector", "vector")
        several = {f"vector {n}": column for n, column in enumerate(vector)} if isinstance(vector, tuple) else {"vector": vector}
        columns: dict[str, str | int] = {"user": source.column("user"), **several}
        kinds: dict[str, Kind] = {"user": "id", "vector": "vector"}
        return [Wanted(name=name, column=column, kind=kinds.get(name, "text")) for name, column in columns.items()]
    roles = {role: source.column(role) for role in source.roles}
    further = {text_name(column): source.column(column) for column in source.further()}
    # What a part's file holds is read there, so an optional role is dealt where the platform itself would read it.
    required = {"user", "friend", *further, *source.columns}
    if isinstance(source, InteractionsSource):
        required |= {"event"} if source.events is not None else set()
        required |= {"value"} if source.threshold is not None or source.weight == "log" else set()
    if isinstance(source, InteractionsSource | ReviewsSource):
        required |= {"item", *(["time"] if source.time_format is not None else [])}
    if isinstance(source, ReviewsSource):
        required |= {"text"}
    return [
        Wanted(name=name, column=column, required=name in required, kind=_KINDS.get(name, "text"))
        for name, column in {**further, **roles}.items()
    ]


def _of_users(source: Source) -> bool:
    """Whether a row belongs to a user. Vectors are of users or of items; a table that does not say has a column that does."""
    if not isinstance(source, VectorsSource):
        return "user" in source.roles
    for role in ("user", "item"):
        if role in source.columns:
            return role == "user"
    found = read_table(source, None, [Wanted(name="user", column="user", required=False)], source="vectors")
    return "user" in found.frame.columns


def _split(frame: pl.DataFrame, parts: int, *, seed: int) -> list[pl.DataFrame]:
    """The rows of each part, in their order; rows without a user go to none."""
    known = frame["user"].drop_nulls().unique()
    place = pl.DataFrame({"user": known, "part": [part_of(user, parts, seed=seed) for user in known]})
    placed = frame.join(place.cast({"part": pl.Int64}), on="user", how="left", maintain_order="left")
    return [placed.filter(pl.col("part") == part).drop("part") for part in range(parts)]


def _anchored(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A source's table with its relative paths made absolute, so that it can be written to another folder."""
    made: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            made[key] = _anchored(value, folder) if key in ("lookup", "links", "names") or "path" in value else dict(value)
        elif key in ("path", "ids"):
            made[key] = [_absolute(one, folder) for one in value] if isinstance(value, list) else _absolute(value, folder)
        elif key == "url":
            made[key] = _absolute_url(value, folder)
        else:
            made[key] = value
    return made


def _absolute(path: str, folder: Path) -> str:
    variable = _BEGINS_WITH_VARIABLE.match(path)
    if variable and Path(os.environ.get(variable.group(1), "")).is_absolute():
        return path  # as it was written, so that the world stays where its data may be elsewhere
    return str((folder / path).absolute())


def _absolute_url(url: str, folder: Path) -> str:
    address = sql.make_url(url)
    database = address.database
    if address.get_backend_name() != "sqlite" or not database or database.startswith((":memory:", "file:")):
        return url
    return address.set(database=_absolute(database, folder)).render_as_string(hide_password=False)
