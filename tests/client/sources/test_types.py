"""Whatever type a column has, it is read or refused in words."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w

from client.config.platform_file import load
from client.sources.platform_tables import read_tables
from client.sources.readers.cells import canonical_text
from shared.base.errors import InputError

NESTED = pl.List(pl.List(pl.String))
TYPES: dict[str, pl.Series] = {
    "nested list": pl.Series([[["Home", "Kitchen"], ["Gifts"]], None, []], dtype=NESTED),
    "duration": pl.Series([dt.timedelta(seconds=5), None, dt.timedelta(days=4e5)]),
    "list of durations": pl.Series([[dt.timedelta(1)], None, []]),
    "list of binary": pl.Series([[b"a", b"\xff"], None, []], dtype=pl.List(pl.Binary)),
    "binary": pl.Series([b"a", b"\xff", None]),
    "object": pl.Series([{"a": 1, "b": [b"x"]}, None, {"a": 2, "b": None}]),
    "list of objects": pl.Series([[{"a": dt.timedelta(1)}], None, []]),
    "array": pl.Series([[1.5, 2], [3, 4], None], dtype=pl.Array(pl.Float64, 2)),
    "time of day": pl.Series([dt.time(1, 2), None, dt.time(3)]),
    "far time": pl.Series([2**62, None, -(2**62)], dtype=pl.Datetime("us")),
    "far date": pl.Series([2**30, None, -(2**30)], dtype=pl.Date),
    "128 bits": pl.Series([2**100, None, 1], dtype=pl.Int128),
    "nothing": pl.Series([None, None, None]),
    "list of nothing": pl.Series([[None], None, []], dtype=pl.List(pl.Null)),
    "enumeration": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
}
USES: dict[str, dict[str, Any]] = {
    "user": {"kind": "interactions", "columns": {"user": "x"}},
    "items of a row": {"kind": "interactions", "columns": {"item": "x"}, "explode": True},
    "time": {"kind": "interactions", "columns": {"time": "x"}},
    "value": {"kind": "interactions", "columns": {"value": "x"}, "threshold": 1.0},
    "event": {"kind": "interactions", "columns": {"event": "x"}, "events": {"a": 1.0}},
    "profile": {"kind": "profiles", "text": ["x"], "numbers": {"x": {"min": 0, "max": 9}}, "values": {"x": {"a": "b"}}},
    "item": {"kind": "items", "columns": dict.fromkeys(("title", "category", "price", "description", "key"), "x")},
    "vector": {"kind": "vectors", "columns": {"user": "user", "vector": "x"}, "width": 2},
    "review": {"kind": "reviews", "columns": {"text": "x", "stars": "x"}},
    "graph": {"kind": "knowledge", "columns": {"head": "item", "relation": "x", "tail": "x"}},
}


@pytest.mark.parametrize("name", TYPES)
def test_a_column_of_any_type_in_any_use(name: str, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id\na\nb\n", encoding="utf-8")
    (tmp_path / "log.csv").write_text("user,item\n1,a\n2,b\n3,a\n", encoding="utf-8")
    pl.DataFrame({"user": ["1", "2", "3"], "item": ["a", "b", "a"], "x": TYPES[name]}).write_parquet(tmp_path / "x.parquet")
    for use, source in USES.items():
        sources = {"log": {"kind": "interactions", "path": "log.csv"}, "other": {**source, "path": "x.parquet"}}
        catalogue = {} if use == "item" else {"catalogue": {"path": "items.csv", "column": "id"}}
        values = {"name": "p", "users": 9, "privacy": {"epsilon": 1.0}, **catalogue, "sources": sources}
        (tmp_path / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
        try:
            tables = read_tables(load(tmp_path / "p.toml"))
        except InputError as error:
            assert "other" in str(error)
        else:
            assert set(tables.user_ids) >= {"1", "2", "3"}


def test_nested_lists_are_joined() -> None:
    assert canonical_text(TYPES["nested list"], "text").to_list() == ["Home, Kitchen, Gifts", None, ""]
    assert canonical_text([[["Home", None], "Gifts", {"a": 1}]], "text").to_list() == ['Home, Gifts, {"a": 1}']
