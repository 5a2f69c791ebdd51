"""What every kind of source and every format must do, whatever the file holds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sql
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.config.platform_file import load
from client.config.source_schema import KINDS
from client.sources.platform_tables import read_tables
from client.sources.tables import Tables
from shared.base.errors import FedfuseError, InputError

Row = dict[str, Any]

MET: list[Row] = [
    {"user": f"u{u}", "item": i, "value": 1 + (u + i) % 5, "time": 1000 + 10 * u + i}
    for u in range(4)
    for i in range(1, 5)
    if (u + i) % 3
]
LOG = "user,item,value,time\n" + "".join(",".join(str(row[key]) for key in row) + "\n" for row in MET)
SUFFIXES = {"csv": ".csv", "tsv": ".tsv", "jsonl": ".jsonl", "parquet": ".parquet", "sqlite": ".db", "colons": ".dat"}


def read(folder: Path, source: dict[str, Any]) -> Tables:
    """The tables of a platform that has this source and, unless it is one, a log of interactions."""
    (folder / "log.csv").write_text(LOG, encoding="utf-8")
    sources = {"tested": source}
    if source["kind"] != "interactions":
        sources["log"] = {"kind": "interactions", "path": "log.csv"}
    path = folder / "platform.toml"
    path.write_text(tomli_w.dumps({"name": "p", "users": 4, "privacy": {"epsilon": 1.0}, "sources": sources}), encoding="utf-8")
    return read_tables(load(path))


def text(rows: list[Row], separator: str = ",", *, header: bool = True) -> str:
    lines = [separator.join(rows[0])] if header else []
    lines += [
        separator.join("" if cell is None else f'"{cell}"' if "," in str(cell) else str(cell) for cell in row.values())
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, rows: list[Row], format_: str) -> dict[str, Any]:
    """A file of this format with these rows, and the keys of the source that reads it."""
    path = folder / f"tested{SUFFIXES[format_]}"
    path.unlink(missing_ok=True)
    match format_:
        case "csv" | "tsv":
            path.write_text(text(rows, "," if format_ == "csv" else "\t"), encoding="utf-8", newline="\r\n")
        case "colons":
            path.write_text(text(rows, "::").replace('"', ""), encoding="cp1252")
            return {"path": path.name, "separator": "::", "encoding": "cp1252"}
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case "parquet":
            pl.DataFrame(rows).write_parquet(path)
        case "sqlite":
            engine = sql.create_engine(f"sqlite:///{path}")
            kinds = {str: sql.String, int: sql.Integer, float: sql.Float}
            columns = [sql.Column(name, kinds[type(cell)]) for name, cell in rows[0].items()]
            table = sql.Table("some rows", sql.MetaData(), *columns)
            with engine.begin() as connection:
                table.create(connection)
                connection.execute(table.insert(), rows)
            engine.dispose()
            return {"url": f"sqlite:///{path.name}", "table": "some rows"}
    return {"path": path.name}


def same(one: object, other: object) -> bool:
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


class ReaderContract:
    """Every kind of source passes this.

    Attributes:
        KEYS: Keys of the source besides the location of its file.
        ROWS: Rows with a column named as each role is.
        LOST: A row of which nothing can be used.
    """

    KEYS: ClassVar[dict[str, Any]]
    ROWS: ClassVar[list[Row]]
    LOST: ClassVar[Row]

    def tables(self, folder: Path, format_: str = "csv", rows: list[Row] | None = None, **keys: Any) -> Tables:
        given = {**self.KEYS, **write(folder, rows or self.ROWS, format_), **keys}
        if format_ == "jsonl" and "columns" not in keys:
            # Of JSON lines what is declared is read.
            given["columns"] = {name: name for name in self.ROWS[0] if not name.startswith("d")} | given.get("columns", {})
        return read(folder, given)

    @pytest.mark.parametrize("format_", [name for name in SUFFIXES if name != "csv"])
    def test_every_format_gives_the_same_tables(self, format_: str, tmp_path: Path) -> None:
        assert same(self.tables(tmp_path, format_), self.tables(tmp_path))

    def test_a_query_gives_the_same_tables(self, tmp_path: Path) -> None:
        place = write(tmp_path, self.ROWS, "sqlite")
        found = read(tmp_path, {**self.KEYS, "url": place["url"], "query": 'SELECT * FROM "some rows" WHERE 1 = 1'})
        assert same(found, self.tables(tmp_path))

    def test_positions_without_header_give_the_same_tables(self, tmp_path: Path) -> None:
        with_header = self.tables(tmp_path)
        (tmp_path / "bare.csv").write_text(text(self.ROWS, header=False), encoding="utf-8")
        names = list(self.ROWS[0])
        columns = {name: number for number, name in enumerate(names, 1)}
        if isinstance(vector := self.KEYS.get("columns", {}).get("vector"), list):
            columns = {"item": 1, "vector": [columns[name] for name in vector]}  # type: ignore[dict-item]
        found = read(tmp_path, {**self.KEYS, "path": "bare.csv", "header": False, "columns": columns})
        assert same(found, with_header)

    def test_several_files_are_one(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text(text(self.ROWS[:1]), encoding="utf-8")
        (tmp_path / "b.csv").write_text(text(self.ROWS[1:]), encoding="utf-8")
        assert same(read(tmp_path, {**self.KEYS, "path": ["a.csv", "b.csv"]}), self.tables(tmp_path))

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_missing_and_empty_files_are_named(self, suffix: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="none"):
            read(tmp_path, {**self.KEYS, "path": f"none{suffix}"})
        (tmp_path / f"empty{suffix}").write_bytes(b"")
        with pytest.raises(InputError, match="empty"):
            read(tmp_path, {**self.KEYS, "path": f"empty{suffix}"})

    def test_a_missing_database_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            read(tmp_path, {**self.KEYS, "url": "sqlite:///none.db", "table": "t"})
        assert not (tmp_path / "none.db").exists()
        write(tmp_path, self.ROWS, "sqlite")
        with pytest.raises(InputError, match="no such table"):
            read(tmp_path, {**self.KEYS, "url": "sqlite:///tested.db", "table": "t"})

    @pytest.mark.parametrize("format_", SUFFIXES)
    def test_a_wrong_column_is_answered_with_the_columns(self, format_: str, tmp_path: Path) -> None:
        role = next(iter(self.ROWS[0]))
        columns = {**self.KEYS.get("columns", {}), role: "no such"}
        with pytest.raises(InputError) as caught:
            self.tables(tmp_path, format_, columns=columns)
        assert "'no such'" in str(caught.value)
        assert all(name in str(caught.value) for name in self.ROWS[0])
        with pytest.raises(InputError, match="99"):
            self.tables(tmp_path, format_, columns={**columns, role: 99})

    def test_a_header_alone_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "bare.csv").write_text(",".join(self.ROWS[0]), encoding="utf-8")
        with pytest.raises(InputError, match="'tested' is empty"):
            read(tmp_path, {**self.KEYS, "path": "bare.csv"})

    def test_all_rows_dropped_is_an_error_with_reasons(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none of the 2 rows of source 'tested' is usable \(.+: 2\)"):
            self.tables(tmp_path, rows=[self.LOST] * 2)

    def test_unusable_rows_are_counted_and_change_nothing(self, tmp_path: Path) -> None:
        clean = self.tables(tmp_path)
        content = text([*self.ROWS, self.LOST]) + ",".join("x" for _ in self.ROWS[0]) + ',"one, too many"\n\n'
        # A file that was cut off within its last row.
        (tmp_path / "broken.csv").write_bytes(content.encode() + b'"\xff\n'.strip())
        found = read(tmp_path, {**self.KEYS, "path": "broken.csv"})
        report = next(report for report in found.reports if report.source == "tested")
        assert report.read == len(self.ROWS) + 4
        assert sum(dropped.rows for dropped in report.dropped) == report.read - report.kept
        assert same(dataclasses.replace(found, reports=()), dataclasses.replace(clean, reports=()))

    @given(
        content=st.binary(max_size=300),
        suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]),
        quote=st.sampled_from(['"', ""]),
    )
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    def test_any_bytes_give_tables_or_a_fedfuse_error(self, content: bytes, suffix: str, quote: str, tmp_path: Path) -> None:
        (tmp_path / f"any{suffix}").write_bytes(content)
        with contextlib.suppress(FedfuseError):
            assert isinstance(read(tmp_path, {**self.KEYS, "path": f"any{suffix}", "quote": quote}), Tables)

    @given(data=st.data())
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    def test_any_cells_give_tables_or_a_fedfuse_error(self, data: st.DataObject, tmp_path: Path) -> None:
        cell = st.sampled_from(["u1", "1", "", '"', "x", "nan", "1e400", "-3", "[1, 2]", "\n", "\ufffd"]) | st.text(max_size=5)
        rows = data.draw(st.lists(st.lists(cell, min_size=1, max_size=6), max_size=5))
        separator = data.draw(st.sampled_from([",", ";", "::", "§"]))
        lines = [separator.join(self.ROWS[0]), *(separator.join(row) for row in rows)]
        if data.draw(st.booleans()):
            lines.append(separator.join(str(cell) for cell in self.ROWS[0].values()))
        (tmp_path / "any.csv").write_bytes("\n".join(lines).encode("utf-8", "replace"))
        keys = {**self.KEYS, "path": "any.csv", "separator": separator, "ragged": data.draw(st.booleans())}
        with contextlib.suppress(FedfuseError):
            assert isinstance(read(tmp_path, keys), Tables)

    @given(data=st.data())
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    def test_any_objects_give_tables_or_a_fedfuse_error(self, data: st.DataObject, tmp_path: Path) -> None:
        value = (
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text(max_size=4)
            | st.lists(st.integers(0, 9), max_size=3)
        )
        value |= st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
        rows = data.draw(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(self.ROWS[0], value)), max_size=4))
        lines = [json.dumps(row) for row in [*rows, *self.ROWS[: data.draw(st.integers(0, 1))]]]
        (tmp_path / "any.jsonl").write_text("\n".join(lines), encoding="utf-8")
        with contextlib.suppress(FedfuseError):
            assert isinstance(read(tmp_path, {**self.KEYS, "path": "any.jsonl"}), Tables)


class TestInteractions(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {"kind": "interactions", "threshold": 3.0}
    ROWS: ClassVar[list[Row]] = MET
    LOST: ClassVar[Row] = {"user": "u1", "item": 1, "value": "many", "time": 5}


class TestItems(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {"kind": "items", "numbers": {"price": {"min": 0, "max": 100}}, "text": ["maker"]}
    ROWS: ClassVar[list[Row]] = [
        {"item": i, "title": f"Thing {i}, the", "category": "a|b", "price": 12.5 * i, "maker": f"M{i}"} for i in range(1, 6)
    ]
    LOST: ClassVar[Row] = {"item": None, "title": "x", "category": "y", "price": 1, "maker": "z"}


class TestProfiles(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {
        "kind": "profiles",
        "values": {"gender": {"F": "woman"}},
        "numbers": {"age": {"min": 0, "max": 90}},
        "text": ["town"],
    }
    ROWS: ClassVar[list[Row]] = [{"user": f"u{u}", "gender": "MF"[u % 2], "age": 20 + u, "town": f"Port {u}"} for u in range(4)]
    LOST: ClassVar[Row] = {"user": "stranger", "gender": "F", "age": 3, "town": "x"}


class TestReviews(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {"kind": "reviews", "public": True}
    ROWS: ClassVar[list[Row]] = [
        {"user": f"u{u}", "item": i, "text": f"good {i}, {u}", "stars": i, "time": 9000 - u - i}
        for u in range(3)
        for i in range(1, 4)
    ]
    LOST: ClassVar[Row] = {"user": "u1", "item": 1, "text": None, "stars": 1, "time": 1}


class TestSocial(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {"kind": "social", "influence": 2}
    ROWS: ClassVar[list[Row]] = [{"user": f"u{u}", "friend": f"u{(u + k) % 4}"} for u in range(4) for k in (1, 2)]
    LOST: ClassVar[Row] = {"user": "u1", "friend": "u1"}


class TestKnowledge(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {"kind": "knowledge"}
    ROWS: ClassVar[list[Row]] = [{"head": i, "relation": "shop.made_in", "tail": f"Land {i % 2}"} for i in range(1, 5)]
    LOST: ClassVar[Row] = {"head": 1, "relation": "made", "tail": 1}


class TestVectors(ReaderContract):
    KEYS: ClassVar[dict[str, Any]] = {"kind": "vectors", "bound": 2.0, "columns": {"vector": ["d1", "d2"]}}
    ROWS: ClassVar[list[Row]] = [{"item": i, "d1": 0.5 * i, "d2": 1.0} for i in range(1, 5)]
    LOST: ClassVar[Row] = {"item": 1, "d1": "inf", "d2": 1.0}


def test_every_kind_has_its_contract() -> None:
    assert {contract.KEYS["kind"] for contract in ReaderContract.__subclasses__()} == set(KINDS)
