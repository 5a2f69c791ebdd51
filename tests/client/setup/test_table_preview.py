"""Of a long file only the beginning is looked at, and of that beginning only what is whole."""

from __future__ import annotations

import json
import sqlite3
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from client.config.table_location import Reading
from client.setup.table_preview import ROWS, _guessed, sample_columns, sample_database, sample_file

BEGINNING = 4 << 20
"""Bytes of a file that are read."""


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_beyond_the_beginning_a_row_that_is_cut_is_left_out(form: str, tmp_path: Path) -> None:
    """Rows of 2 KB, whose characters take two bytes: a cut within one would make another encoding of the file."""
    texts = [f"{number:04d}" + "ü" * (900 + number % 7) for number in range(3000)]
    lines = [json.dumps({"user": text, "item": "i"}, ensure_ascii=False) if form == "jsonl" else f"{text},i" for text in texts]
    head = [] if form == "jsonl" else ["user,item"]
    content = "\n".join([*head, *lines]).encode() + b"\n"
    assert len(content) > BEGINNING and content[BEGINNING - 1 : BEGINNING] != b"\n"
    whole = content[:BEGINNING].count(b"\n") - len(head)
    assert 1000 < whole < 3000
    (tmp_path / f"t.{form}").write_bytes(content)
    sample = sample_file(tmp_path / f"t.{form}")
    assert dict(sample.keys) == {"path": str(tmp_path / f"t.{form}")}
    assert sample.frame["user"].to_list() == texts[:whole]
    assert set(sample.frame["item"]) == {"i"}


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_at_the_end_of_the_beginning(beyond: int, tmp_path: Path) -> None:
    """A file is read to its end where it is shorter, with or without a last line break; else up to a line break."""
    row = "u" * 1021 + ",i\n"  # a KiB
    content = "user,item\n" + row * 4095
    last = "v" * (BEGINNING + beyond - len(content) - 2) + ",i"
    (tmp_path / "t.csv").write_text(content + last)
    assert (tmp_path / "t.csv").stat().st_size == BEGINNING + beyond
    assert sample_file(tmp_path / "t.csv").frame.height == 4095 + (beyond < 0)


def test_no_more_than_some_thousand_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": range(ROWS + 1), "item": ["i"] * (ROWS + 1)})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_ndjson(tmp_path / "t.jsonl")
    frame.write_parquet(tmp_path / "t.parquet")
    for form in ("csv", "jsonl", "parquet"):
        assert sample_file(tmp_path / f"t.{form}").frame["user"].to_list() == list(range(ROWS))
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("create table t (user)")
        database.executemany("insert into t values (?)", [(number,) for number in range(ROWS + 1)])
    database.close()
    (sample,) = sample_database(f"sqlite:///{tmp_path / 't.db'}")
    assert sample.frame["user"].to_list() == list(range(ROWS))


def test_in_a_mixed_column_no_cell_is_lost(tmp_path: Path) -> None:
    """A parser's numbers and texts in one column: all are texts, in whatever order they come."""
    cells = [7, "ann", 2.5, None, True, {"a": 1}]
    for turn in range(len(cells)):
        turned = cells[turn:] + cells[:turn]
        (tmp_path / "t.jsonl").write_text("".join(json.dumps({"user": cell}) + "\n" for cell in turned))
        texts = ["7", "ann", "2.5", None, "true", '{"a": 1}']
        assert sample_file(tmp_path / "t.jsonl").frame["user"].to_list() == texts[turn:] + texts[:turn]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["4", "", " 5 "], pl.Float64),
        (["4", "five"], pl.String),
        (["", ""], pl.String),
        (["four", "five"], pl.String),
    ],
)
def test_numbers_of_a_text_file_are_numbers_where_every_cell_that_is_not_empty_is_one(
    cells: list[str], kind: type[pl.DataType], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("user,rating\n" + "".join(f"u,{cell}\n" for cell in cells))
    assert sample_file(tmp_path / "t.csv").frame.schema["rating"] == kind


def test_what_has_no_name_gets_one(tmp_path: Path) -> None:
    for stem, name in {"My Tablé (2)": "my-tabl---2", "---": "table", "x" * 50: "x" * 40}.items():
        (tmp_path / f"{stem}.csv").write_text("user,,item\na,b,c\n")
        sample = sample_file(tmp_path / f"{stem}.csv")
        assert (sample.name, sample.frame.columns) == (name, ["user", "column 2", "item"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e50"])
def test_a_number_that_no_decimal_column_holds_is_read_in_silence(number: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A NUMERIC that is NaN put a hundred lines of a backtrace on the terminal, and a large one ended the command."""
    assert _guessed([Decimal("1.50"), Decimal(number)])[0] == "1.5"
    assert "panicked" not in capfd.readouterr().err


def test_of_two_columns_of_one_name_the_first_has_it(tmp_path: Path) -> None:
    """The second column took the first one's place, and `fedfuse check` ended in a traceback."""
    (tmp_path / "log.csv").write_text("user,item,user\n1,a,9\n2,b,8\n", encoding="utf-8")
    frame = sample_file(tmp_path / "log.csv").frame
    assert frame.columns == ["user", "item", "column 3"] and frame["user"].to_list() == [1, 2]
    columns = sample_columns(Reading(path=(tmp_path / "log.csv",)))
    assert list(columns) == ["user", "item", 3] and columns["user"].to_list() == ["1", "2"]
