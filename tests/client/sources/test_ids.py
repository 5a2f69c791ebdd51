"""One person is one user, and nobody is none, whatever wrote the export."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sql
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config.id_rules import IdRules
from client.config.platform_file import load
from client.sources.ids import LISTED, as_ids, flagged_ids, spelled_id
from client.sources.platform_tables import read_tables
from client.sources.readers.cells import INEXACT, UNUSABLE, canonical_text
from client.sources.tables import Tables
from tests.support.read_rows import rows_of


def read(folder: Path, *, ids: dict[str, Any] | None = None, kind: dict[str, Any] | None = None, **source: Any) -> Tables:
    """A platform of one log, and of another source where `kind` describes one."""
    sources = {"log": {"kind": "interactions", **source}, **({"other": kind} if kind else {})}
    values = {"name": "p", "users": 99, "privacy": {"epsilon": 1.0}, "ids": ids or {}, "sources": sources}
    (folder / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return read_tables(load(folder / "p.toml"))


def changed(tables: Tables, at: int = -1) -> dict[str, int]:
    return {f"{one.column}: {one.how}": one.cells for one in tables.reports[at].changed}


def lost(tables: Tables, at: int = -1) -> dict[str, int]:
    return {drop.reason: drop.rows for drop in tables.reports[at].dropped}


EXACT = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 10**30) | st.integers(0, 99)
WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=6).map(
    lambda text: "u" + as_ids(pl.Series([text]))[0]
)
"""Letters, which rules leave as they are: none is a number, a list or a marker."""


def spelled(number: int, form: int) -> Any:
    """A whole number as one of the types that hold it exactly."""
    small = abs(number) < 2**53
    return [
        number if -(2**63) <= number < 2**63 else str(number),
        Decimal(number),
        str(number),
        float(number) if small else Decimal(number),
        f"{number}.0" if abs(number) < 10**15 else f" {number}",
    ][form]


def column(cells: list[Any]) -> pl.Series:
    """A part's column, of the type that its cells are of; texts where they are of several."""
    kinds = {type(cell) for cell in cells}
    if kinds == {Decimal}:
        return pl.Series(cells, dtype=pl.Decimal(38, 0))
    return (
        pl.Series(cells, dtype={int: pl.Int64, float: pl.Float64}[kinds.pop()] if kinds <= {int} or kinds <= {float} else None)
        if (len(kinds) == 1)
        else pl.Series([str(cell) for cell in cells])
    )


def write(form: str, path: Path, rows: list[tuple[Any, str]]) -> None:
    users = [user for user, _ in rows]
    if form == "csv":
        lines = ["user,item", *(f"{user},{item}" for user, item in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif form == "jsonl":
        # A JSON number may have any number of digits.
        lines = [f'{{"user": {json.dumps(user) if isinstance(user, str) else user}, "item": "{item}"}}' for user, item in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        pl.DataFrame({"user": column(users), "item": [item for _, item in rows]}).write_parquet(path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_exact_id_reads_back_as_itself_in_parts_of_any_types(form: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(EXACT, min_size=1, max_size=6, unique=True))
    words = data.draw(st.lists(WORDS, max_size=3, unique=True))
    parts = data.draw(st.integers(1, 3))
    expected = {str(one): [f"i{part}" for part in range(parts)] for one in [*ids, *words]}
    with tempfile.TemporaryDirectory() as name:
        for part in range(parts):
            # A part whose ids are all of one type has that type, as writers of tables make it.
            alike = data.draw(st.integers(0, 4))
            forms = [data.draw(st.integers(0, 4)) if data.draw(st.booleans()) else alike for _ in ids]
            rows: list[tuple[Any, str]] = [(spelled(one, how), f"i{part}") for one, how in zip(ids, forms, strict=True)]
            write(form, Path(name) / f"{part}.{form}", [*rows, *((word, f"i{part}") for word in words)])
        assert rows_of(read(Path(name), path=[f"{part}.{form}" for part in range(parts)])) == expected


@given(st.lists(EXACT | WORDS | st.binary(min_size=1, max_size=8), min_size=1, max_size=8, unique_by=repr))
@settings(max_examples=30, deadline=None)
def test_any_exact_id_reads_back_from_sqlite(ids: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        with sqlite3.connect(Path(name) / "log.db") as database:
            database.execute("create table t (user, item text)")
            cells = [str(one) if isinstance(one, int) and not -(2**63) <= one < 2**63 else one for one in ids]
            database.executemany("insert into t values (?, 'i0')", [(cell,) for cell in cells])
        database.close()
        found = rows_of(read(Path(name), url="sqlite:///log.db", table="t"))
    texts = {str(one) for one in ids if not isinstance(one, bytes)}
    assert texts <= set(found)
    # Bytes are a user of their own, unless they spell a text that is there, or no id at all.
    spelled_out = {as_ids(canonical_text([one], "id"))[0] for one in ids}
    assert set(found) == {one for one in spelled_out if one is not None and one not in ("NULL", "nan")}


def test_any_exact_id_reads_back_from_postgresql(postgres: Callable[[str], str], tmp_path: Path) -> None:
    engine = sql.create_engine(url := postgres("ids"))
    big = [1790000000000000000 + number for number in range(30)]
    with engine.begin() as connection:
        for kind in ("bigint", "numeric(20,0)", "numeric(22,2)", "text", "bytea"):
            cells = [f"'\\x{number:016x}'" if kind == "bytea" else f"'{number}'" for number in big]
            name = kind.split("(")[0] + ("2" if "22" in kind else "")
            connection.exec_driver_sql(f"create table t_{name} (buyer {kind}, item text)")
            connection.exec_driver_sql(
                f"insert into t_{name} values {', '.join(f'({cell}, {chr(39)}i{chr(39)})' for cell in cells)}"
            )
    engine.dispose()
    expected = {str(number) for number in big}
    for name in ("bigint", "numeric", "numeric2", "text"):
        assert set(read(tmp_path, url=url, table=f"t_{name}", columns={"user": "buyer"}).user_ids) == expected
    binary = read(tmp_path, url=url, table="t_bytea", columns={"user": "buyer"}).user_ids
    assert set(binary) == {f"\\x{number:016x}" for number in big}
    # One answer whose portions are of different types.
    union = (
        "select buyer::text as user, item from t_bigint union all select buyer::text || '.0', 'j' from t_bigint where buyer < 5"
    )
    assert set(read(tmp_path, url=url, query=union).user_ids) == expected


@pytest.mark.parametrize("large", [False, True])
def test_floats_in_one_part_make_nobody_somebody_else(large: bool, tmp_path: Path) -> None:
    base = 1790000000000000000 if large else 0
    people = [base + number for number in range(1, 31)]
    pl.DataFrame({"user": people, "item": ["a"] * 30}).write_parquet(tmp_path / "jan.parquet")
    pl.DataFrame({"user": [float(one) for one in people], "item": ["b"] * 30}).write_parquet(tmp_path / "feb.parquet")
    tables = read(tmp_path, path=["jan.parquet", "feb.parquet"])
    assert sorted(tables.user_ids) == sorted(map(str, people))
    if large:
        # Refused with the column's name, and not taken for whoever is near.
        assert lost(tables) == {f"user: {INEXACT}": 30} and set(tables.item_ids) == {"a"}
    else:
        assert changed(tables) == {"user: whole numbers written with a decimal point": 30}
        assert set(map(tuple, rows_of(tables).values())) == {("a", "b")}


def test_ids_whose_digits_a_spreadsheet_took_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "user,item\n1.79E+18,a\n1790000000000000001.0,a\n1e+05,a\n100000,b\n1E5,a\n", encoding="utf-8"
    )
    tables = read(tmp_path, path="log.csv")
    assert rows_of(tables) == {"100000": ["a", "b"], "1E5": ["a"]}  # R writes 1e+05; 1E5 is a name of its own
    assert lost(tables) == {f"user: {INEXACT}": 2}


@pytest.mark.parametrize("form", ["bytes", "lists"])
def test_binary_ids_are_told_apart(form: str, tmp_path: Path) -> None:
    """All bytes from 0x80 became one character, and a space at the end of four bytes was taken off."""
    ids = [bytes([0x80 + number, 0xFF]) for number in range(20)] + [number.to_bytes(4, "big") for number in (9, 10, 13, 32, 0)]
    assert len({*as_ids(pl.Series(ids, dtype=pl.Binary))}) == 25
    if form == "bytes":
        pl.DataFrame({"user": ids, "item": ["a"] * 25}).write_parquet(tmp_path / "log.parquet")
        assert read(tmp_path, path="log.parquet").users == 25
    # Text that is kept as bytes is text.
    assert as_ids(pl.Series([b"ann", "Zoë".encode()], dtype=pl.Binary)).to_list() == ["ann", "Zoë"]


UUID = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
SAME = {
    "1": ["1", "1.0", "1.", "1.00", " 1 ", "1\u200b", "\ufeff1", "1\u00a0"],
    "José": ["Jose\u0301", "José", "Jo\u00adsé", "José\u3000", "Jose\u200b\u0301"],
    "Ann Lee": ["Ann\u00a0Lee", "Ann\u2009Lee", "Ann Lee\x00"],
    "user1": ["user\u200d1", "\u200cuser1", "us\u2060er1"],
    "0": ["-0.0", "0.0", "0"],
    UUID: [UUID.upper(), UUID, f"{{{UUID.upper()}}}", f"urn:uuid:{UUID}", f" {UUID.upper()}\u200b", f"{{{UUID}}}"],
}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "sqlite"])
def test_one_person_is_one_user(form: str, tmp_path: Path) -> None:
    """Each spelling is in a part of its own, beside another user."""
    rows = [(spelling, f"i{number}") for spellings in SAME.values() for number, spelling in enumerate(spellings)]
    if form == "sqlite":
        with sqlite3.connect(tmp_path / "log.db") as database:
            database.execute("create table t (user text, item text)")
            database.executemany("insert into t values (?, ?)", rows)
        database.close()
        tables = read(tmp_path, url="sqlite:///log.db", table="t")
    else:
        for number, row in enumerate(rows):
            write(form, tmp_path / f"{number}.{form}", [row])
        tables = read(tmp_path, path=[f"{number}.{form}" for number in range(len(rows))])
    assert rows_of(tables) == {user: sorted(f"i{number}" for number in range(len(SAME[user]))) for user in SAME}
    assert changed(tables) == {
        "user: whole numbers written with a decimal point": 5,
        "user: letters with a combining accent": 2,
        "user: invisible characters": 9,
        "user: spaces": 6,
        "user: UUIDs in capital letters or in braces": 5,
    }


@pytest.mark.parametrize(
    "rule, spellings",
    [
        ("whole_numbers", ["1", "1.0"]),
        ("composed", ["Jose\u0301", "José"]),
        ("invisible", ["ann", "an\u200bn"]),
        ("spaces", ["ann", " ann"]),
        ("uuids", [UUID, UUID.upper(), f"urn:uuid:{UUID}"]),
        ("refuse_lists", ["101, 102"]),
    ],
)
def test_each_rule_can_be_switched_off(rule: str, spellings: list[str], tmp_path: Path) -> None:
    pl.DataFrame({"user": spellings, "item": ["a"] * len(spellings)}).write_csv(tmp_path / "log.csv", quote_style="always")
    assert set(read(tmp_path, path="log.csv", ids={rule: False}).user_ids) == set(spellings)
    if rule == "refuse_lists":
        assert flagged_ids(pl.Series(spellings), IdRules(), single=True).to_list() == [UNUSABLE + LISTED]
    else:
        assert read(tmp_path, path="log.csv").users == 1
    if rule == "whole_numbers":  # a float by type keeps its point, too, and what it may have rounded is refused still
        assert as_ids(pl.Series([1.0, 2.0**60]), IdRules(whole_numbers=False)).to_list() == ["1.0", None]
        assert as_ids(pl.Series(["1.79E+18"]), IdRules(whole_numbers=False)).to_list() == [None]


NO_UUIDS = [
    *("A1B2C3D4", UUID.upper()[:-1], UUID.upper().replace("-", ""), UUID.upper() + "-A", "{" + UUID.upper(), UUID.upper() + "}"),
    *("X" + UUID.upper(), "dQw4w9WgXcQ", "Ann@x.org", "urn:isbn:0306406157", "URN:UUID:1", UUID.upper().replace("F", "G")),
]


def test_of_ids_that_are_no_uuids_letters_count() -> None:
    """Only what has exactly the form of a UUID is known to be the same in capital letters."""
    assert as_ids(pl.Series(NO_UUIDS)).to_list() == NO_UUIDS
    assert as_ids(pl.Series([UUID.upper(), *NO_UUIDS, None])).to_list() == [UUID, *NO_UUIDS, None]


FOLDED = {
    "ann@x.org": ["Ann@X.org", "ANN@x.ORG", "ann@x.org", "\uff21nn@x.org "],
    "12": ["\uff11\uff12", "12", "12.0", "\uff11\uff12\uff0e\uff10"],
    "strasse": ["Stra\u00dfe", "STRASSE"],
    "file1": ["\ufb01le\u2460", "FILE1"],
    "jos\u00e9": ["JOS\u00c9", "Jose\u0301"],
}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_letters_and_forms_of_characters_are_folded_where_the_file_says_so(form: str, tmp_path: Path) -> None:
    rows = [(spelling, f"I{number}") for spellings in FOLDED.values() for number, spelling in enumerate(spellings)]
    write(form, tmp_path / f"log.{form}", rows)
    tables = read(tmp_path, path=f"log.{form}", ids={"folded": True})
    assert rows_of(tables) == {user: [f"i{number}" for number in range(len(FOLDED[user]))] for user in FOLDED}
    assert changed(tables)["item: capital letters and other forms of characters"] == len(rows)
    alone = read(tmp_path, path=f"log.{form}")
    assert alone.users == len(rows) - 1  # 12 and 12.0


TRICKY = st.text(st.sampled_from("aAbeé\u0301\u0327\u0345\u200b\u200d\ufeff \u00a0\u3000.0{}-ßſİıﬁΣς１Ａ"), max_size=8)


@pytest.mark.parametrize("rules", [IdRules(), IdRules(folded=True)])
@given(texts=st.lists(TRICKY | st.text(max_size=8), min_size=1, max_size=8))
@settings(deadline=None, max_examples=200)
def test_what_was_made_alike_is_as_it_stays(rules: IdRules, texts: list[str]) -> None:
    """Else one and the same id would be two, by how often it was read."""
    once = as_ids(pl.Series(texts, dtype=pl.String), rules)
    assert as_ids(once, rules).to_list() == once.to_list()
    # Each cell by itself, and as a person types it.
    assert once.to_list() == [as_ids(pl.Series([text]), rules)[0] for text in texts]
    assert [spelled_id(text, rules) for text in texts] == [
        one if one is not None else text for one, text in zip(once, texts, strict=True)
    ]


def test_every_integer_that_a_float_holds_is_read_and_no_other() -> None:
    edge = 2**53
    spelled_out = [f"{number}.0" for number in (edge - 1, edge, edge + 1, 10**15, 10**17, 1 - edge, -edge)]
    assert as_ids(pl.Series(spelled_out)).to_list() == [str(edge - 1), None, None, str(10**15), None, str(1 - edge), None]
    assert as_ids(pl.Series([float(edge - 1), float(edge), 1e15])).to_list() == [str(edge - 1), None, str(10**15)]


def test_the_rules_hold_in_every_source(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1.0,a\nJose\u0301,a\n", encoding="utf-8")
    (tmp_path / "people.csv").write_text("user,town\n1,Rome\nJos\u00e9,Porto\n", encoding="utf-8")
    people = {"kind": "profiles", "path": "people.csv", "text": ["town"]}
    tables = read(tmp_path, path="log.csv", kind=people)
    assert list(tables.user_text["other"]) == ["town: Rome", "town: Porto"]
    tables = read(tmp_path, path="log.csv", kind=people, ids={"composed": False})
    assert list(tables.user_text["other"]) == ["town: Rome", ""]


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_a_float_that_is_no_number_is_nobody(dtype: pl.DataType, tmp_path: Path) -> None:
    """It was one that is too large to be exact, for polars orders it above all others."""
    users = pl.Series([1.0, float("nan"), None, float("inf")], dtype=dtype)
    pl.DataFrame({"user": users, "item": ["a"] * 4}).write_parquet(tmp_path / "log.parquet")
    assert lost(read(tmp_path, path="log.parquet")) == {f"user: {INEXACT}": 1, "missing user": 2}


MARKERS = ["\\N", "NULL", "null", "nan", "NaN", "None", "<NA>", "N/A", "", " NULL "]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_nobody_is_no_user(form: str, tmp_path: Path) -> None:
    write(form, tmp_path / f"log.{form}", [*((marker, "a") for marker in MARKERS), ("ann", "a"), ("bob", "NULL")])
    tables = read(tmp_path, path=f"log.{form}")
    assert rows_of(tables) == {"ann": ["a"]}
    assert lost(tables) == {"missing user": 10, "missing item": 1}
    assert sum(changed(tables).values()) >= 10
    # Declared, they are what the file says.
    tables = read(tmp_path, path=f"log.{form}", missing=["ann"])
    assert "NULL" in tables.user_ids and "ann" not in tables.user_ids and "NULL" in tables.item_ids


def test_a_header_that_comes_again_is_nobody(tmp_path: Path) -> None:
    text = "user,item,time\n1,a,5\n\ufeffuser,item,time\nuser,a,5\n2,b,5\nuser,item,time\r\n"
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    tables = read(tmp_path, path="log.csv")
    assert list(tables.user_ids) == ["1", "user", "2"]  # a user may be called so
    assert lost(tables) == {"the header again": 2}


LISTS = ["101, 103, 104", "[101, 103]", '["101"]', "101;103", "B00A1,B00A2", "N55528 N19639 N61837", "(101)"]
SINGLE = ["Crosby, Stills, Nash", "070 123 456", "a|b", "AB12 CD34", "x (2)", "1.5", "2024-01-01", "a,b"]


def test_a_list_is_no_item(tmp_path: Path) -> None:
    pl.DataFrame({"user": "ann", "item": [*LISTS, *SINGLE]}).write_csv(tmp_path / "log.csv", quote_style="always")
    tables = read(tmp_path, path="log.csv")
    assert sorted(tables.item_ids) == sorted(SINGLE)
    assert lost(tables) == {f"item: {LISTED}": len(LISTS)}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "jsonl of texts"])
def test_a_list_is_a_row_for_each_entry_where_the_file_says_so(form: str, tmp_path: Path) -> None:
    cells: list[Any] = [["a1", "a2"], ["1.0", None, "a3"], [], None, ["a1"]]
    path = tmp_path / f"log.{form.split()[0]}"
    texts = [cell and " ".join(str(one) for one in cell if one) for cell in cells]
    if form == "parquet":
        pl.DataFrame({"user": ["u", "v", "w", "x", "y"], "item": pl.Series(cells, dtype=pl.List(pl.String))}).write_parquet(path)
    elif form == "csv":
        texts = ["a1, a2", "[1.0, null,a3]", "", "NULL", "a1"]
        pl.DataFrame({"user": ["u", "v", "w", "x", "y"], "item": texts}).write_csv(path)
    else:
        rows = zip("uvwxy", cells if form == "jsonl" else texts, strict=True)
        path.write_text("".join(json.dumps({"user": user, "item": cell}) + "\n" for user, cell in rows), encoding="utf-8")
    tables = read(tmp_path, path=path.name, explode=True)
    assert rows_of(tables) == {"u": ["a1", "a2"], "v": ["1", "a3"], "y": ["a1"]}
    assert tables.reports[-1].read == 5


def test_friends_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,a\n2,a\n3,a\n", encoding="utf-8")
    (tmp_path / "friends.csv").write_text('user,friend\n1,"2, 3"\n2,"3"\n', encoding="utf-8")
    ties = read(tmp_path, path="log.csv", kind={"kind": "social", "path": "friends.csv", "explode": True}).ties["other"]
    assert sorted(ties.friend[ties.offsets[0] : ties.offsets[1]].tolist()) == [1, 2]
