"""Cells, records and keys: each by one declared rule, whatever the other rows hold."""

from __future__ import annotations

import datetime as dt
import json
import math
import sqlite3
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.sources.cell_values import as_numbers, as_times
from client.sources.ids import as_ids
from client.sources.platform_tables import read_tables
from client.sources.readers.cells import A_LIST, INEXACT, UNUSABLE, canonical_text, cell_id
from client.sources.readers.csv_records import BROKEN, records
from client.sources.tables import UNTIMED, Tables


def read(folder: Path, **source: Any) -> Tables:
    (folder / "items.csv").write_text("item\n" + "\n".join(f"i{number}" for number in range(5)), encoding="utf-8")
    sources = {"log": {"kind": "interactions", **source}}
    values = {"name": "p", "users": 9, "privacy": {"epsilon": 1.0}, "catalogue": {"path": "items.csv"}, "sources": sources}
    (folder / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return read_tables(load(folder / "p.toml"))


def dropped(tables: Tables) -> dict[str, int]:
    return {drop.reason: drop.rows for drop in tables.reports[-1].dropped}


SCALARS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "int": (st.integers(-(2**63), 2**63 - 1), pl.Int64),
    "float": (st.floats(), pl.Float64),
    "bool": (st.booleans(), pl.Boolean),
    "text": (st.text(st.characters(exclude_categories=["Cs"])), pl.String),
    "date": (st.dates(), pl.Date),
    "time": (st.datetimes(), pl.Datetime("us")),
    "decimal": (st.decimals(-(10**20), 10**20, places=3), pl.Decimal(38, 3)),
    "bytes": (st.binary(max_size=6), pl.Binary),
    "list": (st.lists(st.integers(0, 9), max_size=3), pl.List(pl.Int64)),
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("kind", ["id", "text", "time"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_column_of_a_type_reads_as_its_cells_do(name: str, kind: Any, data: st.DataObject) -> None:
    """What a file's type makes of a cell is what a parser's value becomes: by itself, and beside cells of other types."""
    cells, dtype = SCALARS[name]
    values = data.draw(st.lists(st.none() | cells, max_size=5))
    typed = canonical_text(pl.Series(values, dtype=dtype), kind)
    alone = [canonical_text([value], kind)[0] for value in values]
    read = {"id": as_ids, "text": as_numbers, "time": lambda column: as_times(column, None)}[kind]
    assert typed.dtype == pl.String
    if name == "float":  # digits of a float may differ, not its value
        assert read(typed).to_list() == read(pl.Series(alone, dtype=pl.String)).to_list() or kind == "id"
    else:
        assert typed.to_list() == alone
    others = ["x", 1, 2.5, None, [1], {"k": 2}, dt.date(2000, 1, 1)]
    assert canonical_text([*others, *values], kind).to_list()[len(others) :] == alone


@pytest.mark.parametrize("kind", ["id", "text", "time"])
def test_in_a_mixed_column_every_cell_keeps_its_text(kind: Any) -> None:
    """A parser's values of many types, read as one column: a text is neither lost among numbers nor they among texts."""
    cells = ["ann", 7, "007", None, 2.5, True, "", "2.50", Decimal("1.50"), b"raw"]
    texts = ["ann", "7", "007", None, "2.5", "true", "", "2.50", "1.5", "raw"]
    for turn in range(len(cells)):  # whichever comes first
        assert canonical_text(cells[turn:] + cells[:turn], kind).to_list() == texts[turn:] + texts[:turn]
    assert canonical_text(pl.Series(cells, dtype=pl.Object), kind).to_list() == texts


@pytest.mark.parametrize("kind", ["id", "text", "time"])
@pytest.mark.parametrize("others", [[None, "ann", "\u00fc\u20ac"], [None, "ann", "\u00fc\u20ac", 7]], ids=["texts", "mixed"])
def test_half_a_character_costs_no_other_cell_its_text(kind: Any, others: list[Any]) -> None:
    """JSON may escape one half of a character, which polars takes for none of its texts."""
    halved = canonical_text([*others, "a\ud83d", "z"], kind).to_list()
    assert halved == [*canonical_text(others, kind).to_list(), "a\ufffd\ufffd\ufffd", "z"]


@pytest.mark.parametrize("others", [[None, "ann"], [None, "ann", 7], [None, "ann", ["a"]]], ids=["texts", "mixed", "a list"])
def test_no_cell_of_a_file_is_taken_for_the_mark_of_what_is_no_id(others: list[Any]) -> None:
    """A text that begins with the mark would drop its row, with a reason that the file has made up."""
    cells = [*others, UNUSABLE + "a reason", UNUSABLE * 2 + "b", UNUSABLE]
    plain = canonical_text(others, "id").to_list()
    assert canonical_text(cells, "id").to_list() == [*plain, "a reason", "b", ""]
    if others == [None, "ann"]:
        assert canonical_text(pl.Series(cells), "id").to_list() == [*plain, "a reason", "b", ""]
    assert [cell_id(cell) for cell in cells[-3:]] == ["a reason", "b", ""]


def test_in_a_mixed_column_of_vectors_texts_and_lists_are_read_alike() -> None:
    cells = [[1, 2.5], "1 2.5", None, "[1, 2.5]", [True, 1], True, 3, {"x": 1}, "none"]
    read = canonical_text(cells, "vector").to_list()
    assert read[:4] == [[1.0, 2.5], [1.0, 2.5], None, [1.0, 2.5]]
    assert math.isnan(read[4][0]) and read[4][1] == 1.0  # a flag is no number
    assert read[5:] == [[None], [3.0], None, [None]]


@given(st.lists(st.integers(-(10**37), 10**37), min_size=1, max_size=5, unique=True))
@settings(deadline=None)
def test_ids_are_exact_whatever_their_size(ids: Sequence[int]) -> None:
    expected = [str(number) for number in ids]
    assert as_ids(canonical_text(list(ids), "id")).to_list() == expected
    assert as_ids(canonical_text([Decimal(number) for number in ids], "id")).to_list() == expected
    assert as_ids(pl.Series([Decimal(number) for number in ids], dtype=pl.Decimal(38, 0))).to_list() == expected
    assert as_ids(pl.Series(expected)).to_list() == expected


def test_what_is_no_exact_id_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"user": user, "item": "i0"} for user in ["ann", ["ann", "bob"], {"id": 1}, 2.0**60, 7.0, None, True]]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tables = read(tmp_path, path="log.jsonl")
    assert list(tables.user_ids) == ["ann", "7", "true"]
    assert dropped(tables) == {f"user: {A_LIST}": 2, f"user: {INEXACT}": 1, "missing user": 1}
    # Float32 holds fewer integers exactly.
    assert as_ids(pl.Series([2.0**24, 2.0**24 - 1], dtype=pl.Float32)).to_list() == [None, str(2**24 - 1)]


def test_one_id_that_is_no_number_renames_nobody(tmp_path: Path) -> None:
    """The attack: `.0` was stripped only if every id had it."""
    rows = "".join(f"{number}.0,i1\n" for number in range(30))
    (tmp_path / "log.csv").write_text("user,item\n" + rows, encoding="utf-8")
    alone = list(read(tmp_path, path="log.csv").user_ids)
    (tmp_path / "log.csv").write_text("user,item\n" + rows + "guest,i1\n", encoding="utf-8")
    assert list(read(tmp_path, path="log.csv").user_ids) == [*alone, "guest"] == [*map(str, range(30)), "guest"]


def test_one_users_key_is_no_column(tmp_path: Path) -> None:
    """The attack: one user's undeclared key `time` dropped the rows of all who had none: of 30 users 1 was left."""
    rows = [{"user": f"u{number}", "item": "i1"} for number in range(30)]
    path = tmp_path / "log.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"user": "eve", "item": "i1", "time": 5}]), encoding="utf-8"
    )
    tables = read(tmp_path, path="log.jsonl")
    assert tables.users == 31 and tables.interactions.time is None
    assert dropped(tables) == {"time: not read, since 'columns' does not name the key (row kept)": 1}
    # Declared, it is a column, also where no row has it; a row without a time stays, and one with an impossible time does not.
    declared = read(tmp_path, path="log.jsonl", columns={"time": "time"})
    assert list(declared.user_ids) == [*(f"u{number}" for number in range(30)), "eve"]
    assert declared.interactions.time is not None and declared.interactions.time.tolist() == [UNTIMED] * 30 + [5]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + '{"user": "a", "item": "i1", "time": "soon"}\n')
    declared = read(tmp_path, path="log.jsonl", columns={"time": "time"})
    assert dropped(declared) == {"missing time (row kept, before those with one)": 2, "impossible time": 1}


def test_the_first_row_says_nothing_of_the_others(tmp_path: Path) -> None:
    """The attack: in a file without a header the first row was as long as any row might be."""
    columns = {"user": 1, "item": 2}
    for first in ("eve,i1", "eve", "", "eve,i1,more,and,more"):
        (tmp_path / "log.csv").write_text(first + "\nann,i1,x\nbob,i2,y,z\n", encoding="utf-8")
        found = read(tmp_path, path="log.csv", header=False, columns=columns)
        assert [user for user in found.user_ids if user != "eve"] == ["ann", "bob"]
        found = read(tmp_path, path="log.csv", header=False, columns=columns, fields=3)
        assert [user for user in found.user_ids if user != "eve"] == ["ann"]
        assert dropped(found)["row with more columns than the first"] >= 1


def test_a_text_that_sqlite_cannot_decode_costs_its_row_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "log.db") as database:
        database.execute("create table log (user, item)")
        database.executemany("insert into log values (?, ?)", [("ann", "i1"), ("bob", "i2"), (7, "i2"), (7.0, "i1")])
        database.execute("insert into log values (cast(x'ff41' as text), 'i1')")
    database.close()
    tables = read(tmp_path, url="sqlite:///log.db", table="log")
    assert list(tables.user_ids) == ["ann", "bob", "7"]
    assert dropped(tables) == {"text that cannot be decoded": 1}


LINES = st.lists(st.text(st.sampled_from('ab,"'), max_size=8), max_size=6)


@given(lines=LINES, others=LINES, place=st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_where_a_row_is_a_line_no_line_reaches_another(lines: list[str], others: list[str], place: int) -> None:
    """Any lines beside any other lines: each is read as it is alone."""

    def each(texts: list[str]) -> list[tuple[Any, ...]]:
        found = records([*texts, ""], ",", '"', header=False, line_breaks=False)
        rows: list[tuple[int, tuple[Any, ...]]] = [(at, (line,)) for at, line in zip(found.plain_at, found.plain, strict=True)]
        rows += [(at, (tuple(row), flaw)) for at, row, flaw in zip(found.others_at, found.others, found.flaws, strict=True)]
        assert [at for at, _ in sorted(rows)] == list(range(len(texts)))
        return [row for _, row in sorted(rows)]

    place = min(place, len(lines))
    together = each([*lines[:place], *others, *lines[place:]])
    assert together[:place] + together[place + len(others) :] == each(lines)
    assert together == [row for line in [*lines[:place], *others, *lines[place:]] for row in each([line])]


@given(
    rows=st.lists(st.lists(st.text(st.sampled_from('ab,"'), max_size=6), min_size=2, max_size=2), max_size=6),
    place=st.integers(0, 6),
)
@settings(max_examples=200, deadline=None)
def test_an_open_mark_costs_its_own_row_among_well_formed_ones(rows: list[list[str]], place: int) -> None:
    def written(row: list[str]) -> str:
        return ",".join('"' + cell.replace('"', '""') + '"' for cell in row)

    place = min(place, len(rows))
    parts = [written(row) for row in rows]
    found = records([*parts[:place], 'x,"cut of', *parts[place:], ""], ",", '"', header=False, line_breaks=True)
    whole = records([*parts, ""], ",", '"', header=False, line_breaks=True)
    assert [row for row, flaw in zip(found.others, found.flaws, strict=True) if flaw is None] == list(whole.others)
    assert list(found.plain) == list(whole.plain)
    assert list(found.flaws).count(BROKEN) == 1


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_parts_of_different_types_are_of_the_same_users(form: str, tmp_path: Path) -> None:
    """A gap or a text of one user gives a part another type: integers in January, floats in February, texts in March."""
    parts = [
        pl.DataFrame({"user": [1, 2, 7], "item": ["i0"] * 3}),
        pl.DataFrame({"user": [1.0, None, 7.0], "item": ["i1"] * 3}),
        pl.DataFrame({"user": ["1", "2.0", "guest"], "item": ["i2"] * 3}),
    ]
    for number, part in enumerate(parts):
        path = tmp_path / f"{number}.{form}"
        {"csv": part.write_csv, "parquet": part.write_parquet, "jsonl": part.write_ndjson}[form](path)
    tables = read(tmp_path, path=[f"{number}.{form}" for number in range(3)])
    offsets, items = tables.interactions.offsets, tables.interactions.item
    met = {user: items[offsets[at] : offsets[at + 1]].tolist() for at, user in enumerate(tables.user_ids)}
    assert met == {"1": [0, 1, 2], "2": [0, 2], "7": [0, 1], "guest": [2]}
