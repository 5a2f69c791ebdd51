"""Reading is local to a user's rows: what is read of one user never depends on what another user's rows hold.

A random small platform is written in one of the formats, with odd cells, missing and additional keys, mixed types and broken
rows, and read with and without the rows of one user. Everything that the tables hold of the others is equal.
"""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.config.source_schema import KINDS
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from tests.support.examples import examples

MISSING = object()
"""The row has no such key."""
SPELLED: dict[str, list[Any]] = {
    "1": [1, "1", "1.0", 1.0, " 1 "],
    "guest": ["guest", " guest"],
    "007": ["007"],
    "2.5": [2.5, "2.5"],
    "9007199254740993": ["9007199254740993"],
}
"""Every user's id, and how cells spell it."""
USERS = list(SPELLED)
ALWAYS = ["901", "902"]
"""Users who are never removed and have one regular row in each source."""
ITEMS = [f"i{number}" for number in range(6)] + ["12", "13"]
ODD: list[Any] = [
    None, MISSING, "", "x", 'say "hi"', "two\nlines", ",", 3, 3.0, 2.5, True, -1, "1e400", 10**30, "nan", "\ufeff", 10**12,
]  # fmt: skip
NESTED: list[Any] = [["a", "b"], {"k": 1}, {"other": [1, {"k": None}]}, [[1.5], []]]
USUAL: dict[str, list[Any]] = {
    "item": ["i0", "i1", "i2", 12, 12.0, "12.0", "not listed"],
    "value": [1, 4, 4.5, "3"],
    "event": ["buy", "view", 1],
    "time": [1000, 2000.5, 3000, "1970-01-02", "1970-01-02T03:04:05Z"],
    "town": ["Rome", "Porto", 3, 3.0, 4.0, 2.5, True],
    "age": [20, 30.0, "40", 60],
    "gender": ["F", "M", 1],
    "text": ["fine", "two\nlines", 5, 5.0, 2.5],
    "stars": [5, 4.5, "3", 1.0],
    "friend": [*(cell for cells in SPELLED.values() for cell in cells), 901, "902.0", "nobody"],
    "vector": ["0.5 1", "[1, 0.2]", "[1,2,3]", "3 2 1"],
}
UNUSUAL: dict[str, list[Any]] = {
    **dict.fromkeys(USUAL, ODD),
    "item": [*ODD, 'i"1', "i\udcff", "a\nb"],
    "age": [*ODD, 200],
    "friend": [None, MISSING],
    "vector": ["1", "x y", "nan 1", "", None, MISSING],
}
SOURCES: dict[str, dict[str, Any]] = {
    "log": {"kind": "interactions", "threshold": 2.0, "events": {"buy": 1.0, "view": 0.2, "1": 0.5}},
    "people": {
        "kind": "profiles",
        "text": ["town"],
        "numbers": {"age": {"min": 0, "max": 99}},
        "values": {"gender": {"F": "woman", "1": "man"}},
    },
    "said": {"kind": "reviews"},
    "friends": {"kind": "social", "influence": 1},
    "faces": {"kind": "vectors", "width": 2, "columns": {"user": "user", "vector": "vector"}},
}
ROLES = {
    "log": ["user", "item", "value", "event", "time"],
    "people": ["user", "town", "age", "gender"],
    "said": ["user", "item", "text", "stars", "time"],
    "friends": ["user", "friend"],
    "faces": ["user", "vector"],
}
OPTIONAL = {"log": ["time"], "said": ["stars", "time"]}
REGULAR: dict[str, Any] = {
    "item": "i0", "value": 5, "event": "buy", "time": 500, "town": 7, "age": 50, "gender": 1, "text": 4, "stars": 4,
    "friend": 901, "vector": "0.5 0.5",
}  # fmt: skip
FLAWS = ["long", "short", "bytes", "open", "text", "list"]

Row = tuple[str, dict[str, Any], str]
"""Whose it is, its cells, and how it is broken."""


@st.composite
def platforms(draw: st.DrawFn, form: str) -> tuple[str, dict[str, list[Row]], dict[str, bool]]:
    """The user to remove, the rows of each source, and which optional roles are declared."""
    removed = draw(st.sampled_from(USERS))
    # Most cells are as they should be, so that most rows are read.
    cells = {
        role: st.sampled_from([*(4 * usual), *UNUSUAL[role], *(2 * NESTED if form == "jsonl" else [])])
        for role, usual in USUAL.items()
    }
    extra = st.dictionaries(st.sampled_from(["time", "title", "item", "note", "price"]), st.sampled_from(ODD), max_size=1)
    owner = st.sampled_from([removed, removed, *USERS])
    rows: dict[str, list[Row]] = {}
    for source, roles in ROLES.items():
        one = st.fixed_dictionaries({role: cells[role] for role in roles if role != "user"})
        flaw = st.sampled_from([""] * 2 * len(FLAWS) + FLAWS)
        drawn = draw(st.lists(st.tuples(owner, st.integers(0, 4), one, extra, flaw), min_size=4, max_size=10))
        if draw(st.booleans()):
            # The others have numbers and gaps alone: then a text, or a gap, of the one would change the type of a column.
            drawn = [
                (user, at, row if user == removed else {role: in_numbers(role, cell) for role, cell in row.items()}, more, flaw)
                for user, at, row, more, flaw in drawn
                if user in (removed, "1", "2.5") or draw(st.booleans())
            ]
        rows[source] = [
            (user, {**more, **row, "user": SPELLED[user][spelling % len(SPELLED[user])]}, flaw)
            for user, spelling, row, more, flaw in drawn
        ]
        for place, user in enumerate(ALWAYS):
            regular = {role: REGULAR[role] for role in roles if role != "user"}
            rows[source].insert(place * 4, (user, {**regular, "user": int(user)}, ""))
        # The one says first what others say too: nobody else's row may be the duplicate of theirs. Not always:
        # of some sources the first row of a user is all that is read, and it has to differ.
        if draw(st.booleans()):
            rows[source].insert(0, (removed, {**rows[source][0][1], "user": SPELLED[removed][0]}, ""))
    # Everybody has one regular row of the log, so that whatever else is said of them is read.
    log = {role: REGULAR[role] for role in ROLES["log"] if role != "user"}
    rows["log"] += [(user, {**log, "item": "i2", "user": cells[0]}, "") for user, cells in SPELLED.items()]
    rows["friends"] += [("902", {"user": 902, "friend": SPELLED[user][0]}, "") for user in USERS]
    declared = {f"{source}.{role}": draw(st.booleans()) for source, roles in OPTIONAL.items() for role in roles}
    return removed, rows, declared


def in_numbers(role: str, cell: Any) -> Any:
    numbers = [one for one in USUAL[role] if isinstance(one, int | float) and not isinstance(one, bool)]
    return (
        cell if isinstance(cell, int | float) or not numbers else None if cell is None else numbers[len(str(cell)) % len(numbers)]
    )


def as_text(cell: Any) -> str:
    return "" if cell is None or cell is MISSING else str(cell).encode("utf-8", "replace").decode()


def csv_line(cells: Sequence[str], flaw: str, *, multiline: bool) -> bytes:
    if not multiline:
        cells = [cell.replace("\n", " ") for cell in cells]
    line = ",".join('"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\n') else cell for cell in cells)
    if multiline and flaw == "open" and "\n" in line:
        flaw = ""
    match flaw:
        case "long":
            return line.encode() + b",one,too many"
        case "short":
            return line.split(",")[0].encode()
        case "bytes":
            return line.encode() + b"\xff"
        case "open":
            return line.encode() + b',"cut of'
        case "text":
            return line.encode() + b'" or 5" disk'
        case "list":
            return line.encode().replace(b",", b"\x1f\x1e\x1d\x1c\x01\x02\x03\x04,")
    return line.encode()


def csv_file(path: Path, roles: Sequence[str], rows: Sequence[Row], *, multiline: bool, header: bool = True) -> None:
    lines = [",".join(roles).encode()] if header else []
    lines += [csv_line([as_text(row.get(role)) for role in roles], flaw, multiline=multiline) for _, row, flaw in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def write_csv(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    csv_file(path, roles, rows, multiline=True)
    return {}


def write_lines(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    csv_file(path, roles, rows, multiline=False)
    return {"line_breaks": False}


def write_bare(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    csv_file(path, roles, rows, multiline=False, header=False)
    return {"line_breaks": False, "header": False}


def write_colons(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    lines = ["::".join(roles).encode()]
    for _, row, flaw in rows:
        line = "::".join(as_text(row.get(role)).replace("\n", " ").replace("::", " ") for role in roles).encode()
        lines.append(line + {"long": b"::one::two", "bytes": b"\xff", "list": bytes(range(1, 9))}.get(flaw, b""))
    path.write_bytes(b"\r\n".join(lines) + b"\r\n")
    return {"separator": "::", "encoding": "cp1252"}


def write_jsonl(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    lines = []
    for _, row, flaw in rows:
        line = json.dumps({key: cell for key, cell in row.items() if cell is not MISSING}).encode()
        match flaw:
            case "short" | "open":
                line = line[:-3]
            case "bytes":
                line = line.replace(b'"user": "', b'"user": "\xff')
            case "text":
                line = b"no JSON"
            case "list":
                line = b"[" + line + b"]"
        lines.append(line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return {"format": "jsonl"}


def write_parquet(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    # A column's type is what the usual writers make of its cells: one text makes texts of all, one gap makes floats.
    columns = []
    for role in roles:
        cells = [None if row.get(role, MISSING) is MISSING else row[role] for _, row, _ in rows]
        numbers = all(
            cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool) and abs(cell) < 2**50) for cell in cells
        )
        if numbers and all(isinstance(cell, int) for cell in cells):
            columns.append(pl.Series(role, cells, dtype=pl.Int64))
        elif numbers:
            columns.append(pl.Series(role, [math.nan if cell is None else float(cell) for cell in cells], dtype=pl.Float64))
        else:
            columns.append(pl.Series(role, [None if cell is None else as_text(cell) for cell in cells], dtype=pl.String))
    pl.DataFrame(columns).write_parquet(path)
    return {"format": "parquet"}


def write_sqlite(path: Path, roles: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("pragma synchronous = off")
        database.execute(f"create table t ({', '.join(f'{role!r}' for role in roles)})".replace("'", '"'))
        for _, row, flaw in rows:
            cells = [
                None if cell is MISSING
                else as_text(cell) if isinstance(cell, bool | str) or (isinstance(cell, int) and abs(cell) >= 2**63)
                else cell
                for cell in (row.get(role) for role in roles)
            ]  # fmt: skip
            if flaw == "bytes":
                cells[1] = b"\xff\xfe"
            database.execute(f"insert into t values ({', '.join('?' for _ in roles)})", cells)
            if flaw == "text":
                # A text that is not UTF-8, which SQLite keeps as it is given.
                database.execute(f"update t set {roles[1]} = cast(x'ff41' as text) where rowid = last_insert_rowid()")
    database.close()
    return {"sqlite": True}


WRITERS = {
    "csv": write_csv,
    "lines": write_lines,
    "bare": write_bare,
    "colons": write_colons,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "sqlite": write_sqlite,
}


def read(form: str, rows: dict[str, list[Row]], declared: dict[str, bool], *, without: str | None) -> Tables:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources: dict[str, Any] = {}
        for source, all_rows in rows.items():
            kept = [row for row in all_rows if row[0] != without]
            columns = dict(SOURCES[source].get("columns", {}))
            present = [role for role in ROLES[source] if role not in OPTIONAL.get(source, ()) or declared[f"{source}.{role}"]]
            columns |= {role: role for role in present if role in OPTIONAL.get(source, ())}
            if form == "bare":
                columns = {role: place for place, role in enumerate(present, 1)}
            # Two files, each with types of its own.
            halves = [kept] if form == "sqlite" else [kept[: len(kept) // 2 + 1], kept[len(kept) // 2 + 1 :]]
            paths = [f"{source}-{number}.dat" for number in range(len(halves))]
            for path, half in zip(paths, halves, strict=True):
                # Files with a header have the columns that are there in general; JSON lines have what a row has.
                keys = WRITERS[form](folder / path, present, half)
            place = {"url": f"sqlite:///{paths[0]}", "table": "t"} if keys.pop("sqlite", None) else {"path": paths}
            sources[source] = {**SOURCES[source], **place, **keys, "columns": columns}
        (folder / "items.csv").write_text("id\n" + "\n".join(ITEMS) + "\n", encoding="utf-8")
        values = {"name": "p", "users": 9, "catalogue": {"path": "items.csv", "column": "id"}, "privacy": {"epsilon": 1.0}}
        (folder / "p.toml").write_text(tomli_w.dumps({**values, "sources": sources}), encoding="utf-8")
        return read_tables(load(folder / "p.toml"))


def told(tables: Tables, *, without: str | None = None) -> dict[str, Any]:
    """User -> all that the tables hold of them, by ids and not by numbers."""
    found: dict[str, Any] = {}
    log = tables.interactions
    for number, user in enumerate(tables.user_ids):
        if user == without:
            continue
        of = slice(log.offsets[number], log.offsets[number + 1])
        times = None if log.time is None else log.time[of].tolist()
        found[user] = {
            "met": [tables.item_ids[item] for item in log.item[of]],
            "how": [log.weight[of].tolist(), log.positive[of].tolist(), times],
            "text": {name: texts[number] for name, texts in tables.user_text.items()},
            "vectors": {
                name: (bool(vectors.present[number]), vectors.values[number].tolist())
                for name, vectors in tables.user_vectors.items()
            },
            "notes": {
                name: [
                    (tables.item_ids[notes.item[row]] if notes.item[row] >= 0 else None, notes.text[row])
                    for row in range(notes.offsets[number], notes.offsets[number + 1])
                ]
                for name, notes in tables.notes.items()
            },
            # Whoever is removed keeps their place in others' lists, and no longer speaks there.
            "ties": {
                name: [
                    None if friend < 0 or tables.user_ids[friend] == without else tables.user_ids[friend]
                    for friend in ties.friend[ties.offsets[number] : ties.offsets[number + 1]]
                ]
                for name, ties in tables.ties.items()
            },
        }
    return found


def public(tables: Tables) -> list[Any]:
    vectors = {name: (one.values.tolist(), one.present.tolist()) for name, one in tables.item_vectors.items()}
    return [list(tables.item_ids), list(tables.item_titles), dict(tables.item_text), vectors, tables.catalogue_public]


@pytest.mark.parametrize("form", WRITERS)
@given(data=st.data())
@settings(
    max_examples=examples(12),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    # A smaller counterexample costs minutes of reading files.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
def test_removing_one_user_changes_nothing_of_the_others(form: str, data: st.DataObject) -> None:
    removed, rows, declared = data.draw(platforms(form))
    if form == "csv":
        # Where quoted text may hold line ends, others' marks must be closed for rows to be rows
        # (`client/sources/readers/csv_records.py`).
        rows = {
            source: [(user, row, flaw if user == removed or flaw not in ("open", "text") else "") for user, row, flaw in of]
            for source, of in rows.items()
        }
    whole, rest = (read(form, rows, declared, without=without) for without in (None, removed))
    assert told(whole, without=removed) == told(rest)
    assert public(whole) == public(rest)
    assert whole.vector_widths == rest.vector_widths


def test_every_kind_of_users_rows_is_among_these() -> None:
    assert {source["kind"] for source in SOURCES.values()} == {name for name, kind in KINDS.items() if "user" in kind.roles}
