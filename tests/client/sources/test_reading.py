"""Bytes to rows: delimited text against Python's own reader, bounds, ids and texts."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.config.source_schema import NumberRange
from client.config.table_location import Reading
from client.sources.cell_values import LONGEST_TEXT, as_texts, as_times
from client.sources.cleaning import Cleaning
from client.sources.ids import as_ids
from client.sources.kinds.vectors import bounded
from client.sources.number_buckets import bucket_words, bucketed
from client.sources.readers.csv_records import BROKEN
from client.sources.readers.database import shown_url
from client.sources.readers.delimited import RAGGED, open_delimited

CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff") | st.sampled_from('",;\n'), max_size=6)


def taken(path: Path, content: bytes, **how: object) -> list[tuple[str | None, ...]]:
    path.write_bytes(content)
    scan = open_delimited(path, Reading(path=(path,), **how))  # type: ignore[arg-type]
    (portion,) = scan.take(range(len(scan.names or scan.seen())))
    return list(zip(*portion.columns.values(), portion.flaws, strict=True))


@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    separator=st.sampled_from(",;\t|"),
    crlf=st.booleans(),
    utf16=st.booleans(),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_quoted_text_is_read_as_it_was_written(
    rows: list[tuple[str, str, str]], separator: str, crlf: bool, utf16: bool, tmp_path: Path
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\r\n" if crlf else "\n", quoting=csv.QUOTE_ALL).writerows(
        [("a", "b", "c"), *rows]
    )
    encoding = "utf-16" if utf16 else "utf-8"
    found = taken(tmp_path / "t.csv", text.getvalue().encode(encoding), separator=separator, encoding=encoding, line_breaks=True)
    assert [tuple(cell or "" for cell in row[:3]) for row in found] == rows
    assert all(row[3] is None for row in found)


@pytest.mark.parametrize("first", ["x^", "x^2", "x\x01", "x^y z"])
@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_text_that_begins_as_compressed_data_does_is_text(first: str, quoted: bool, header: bool, tmp_path: Path) -> None:
    """A user's id in the first row of a file must not make it unreadable."""
    lines = [f"{first},a", f"{first},b", '"u, v",w' if quoted else "u,w"]
    found = taken(tmp_path / "t.csv", "\n".join([*lines, ""]).encode(), header=header)
    rows = [(first, "a"), (first, "b"), ("u, v" if quoted else "u", "w")]
    assert [row[:2] for row in found] == rows[header:]


SPECIAL = r"\^]-[&~|.$*+?(){}#"
"""Characters with a special meaning in patterns, within brackets or without."""


@given(
    rows=st.lists(st.tuples(*[st.text(st.sampled_from(SPECIAL + 'ab "'), max_size=5)] * 2), min_size=1, max_size=5),
    marks=st.permutations(SPECIAL + '"'),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_character_may_separate_or_quote(rows: list[tuple[str, str]], marks: list[str], quoting: int, tmp_path: Path) -> None:
    separator, quote, *_ = marks
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quotechar=quote, lineterminator="\n", quoting=quoting).writerows([("x", "y"), *rows])
    found = taken(tmp_path / "t.csv", text.getvalue().encode(), separator=separator, quote=quote)
    assert [tuple(cell or "" for cell in row[:2]) for row in found] == rows
    assert all(row[2] is None for row in found)


@given(
    lines=st.lists(st.text(st.sampled_from('ab":;\t é'), max_size=8), min_size=1, max_size=6),
    separator=st.sampled_from(["::", "\t", ";", "é"]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_unquoted_text_is_split_as_it_stands(lines: list[str], separator: str, tmp_path: Path) -> None:
    lines = [separator.join("xyz"), *lines]
    found = taken(tmp_path / "t.dat", "\r\n".join(lines).encode(), separator=separator, quote="", header=False, fields=3)
    cells = [line.split(separator) for line in lines]
    while cells and cells[-1] == [""] and len(found) < len(cells):
        cells.pop()  # nothing after the last line end is no line
    expected = [[*row[:3], *[""] * (3 - len(row))] for row in cells]
    assert [[cell or "" for cell in row[:3]] for row in found] == expected
    # A single empty cell too many holds nothing, so nothing is lost with it.
    assert [row[3] for row in found] == [RAGGED if len(row) > 3 and row[3] else None for row in cells]


def test_ragged_rows_are_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    content = b"a,b\n1,2,3\n4\n5,6,\n"
    assert taken(tmp_path / "t.csv", content) == [("1", "2", RAGGED), ("4", None, None), ("5", "6", None)]
    assert taken(tmp_path / "t.csv", content, ragged=True) == [("1", "2", None), ("4", None, None), ("5", "6", None)]


def test_quotation_marks_within_text(tmp_path: Path) -> None:
    content = b'a,b\n1,3" disk\n2,say "hi"\n3,"x""y"\n4,"p"q\n'
    assert [row[1] for row in taken(tmp_path / "t.csv", content)] == ['3" disk', 'say "hi"', 'x"y', "pq"]


def test_a_mark_that_is_never_closed(tmp_path: Path) -> None:
    assert taken(tmp_path / "t.csv", b'a,b\n1,2\n3,"cut of') == [("1", "2", None), ("3", "cut of", BROKEN)]
    # It is the row's own mistake, wherever it is, and costs no other row.
    assert taken(tmp_path / "t.csv", b'a,b\n1,"2\n3,4\n5,6\n')[1:] == [("3", "4", None), ("5", "6", None)]


def test_a_separator_of_several_characters_beside_any_other_characters(tmp_path: Path) -> None:
    odd = bytes(range(1, 32)).replace(b"\n", b"")
    content = b"a::b\n" + odd + b'::"2\n3::4'
    assert taken(tmp_path / "t.dat", content, separator="::") == [(odd.decode(), '"2', None), ("3", "4", None)]


def test_paths_are_no_patterns(tmp_path: Path) -> None:
    assert taken(tmp_path / "[a]*.csv", b"a,b\n1,2\n") == [("1", "2", None)]


def test_only_the_asked_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b,c\n1,2,3\n")
    (portion,) = open_delimited(path, Reading(path=(path,))).take([2])
    assert [column.to_list() for column in portion.columns.values()] == [["3"]]


@given(number=st.floats(-1e9, 1e9), low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), buckets=st.integers(2, 20))
def test_buckets_are_equally_wide(number: float, low: float, width: float, buckets: int) -> None:
    bounds = NumberRange(min=low, max=low + width, buckets=buckets)
    cleaning = Cleaning(source="s", kind="items", where="")
    got = bucketed(pl.Series([number]), bounds, cleaning, name="n")
    if not bounds.min <= number <= bounds.max:
        assert (got.words[0], got.coordinates[0]) == (None, None)
        assert [drop.rows for drop in cleaning.report(1).dropped] == [1]
        return
    assert 0 <= got.coordinates[0] <= 1
    assert got.coordinates[0] == pytest.approx((number - bounds.min) / (bounds.max - bounds.min), abs=1e-6)
    near = {min(int(max(0.0, got.coordinates[0] * buckets + slack)), buckets - 1) for slack in (-1e-6, 1e-6)}
    assert bucket_words(bounds).index(got.words[0]) in near


def test_an_edge_is_in_the_upper_bucket() -> None:
    bounds, cleaning = NumberRange(min=5, max=100, words=("a", "b", "c", "d", "e")), Cleaning(source="s", kind="items", where="")
    assert bucketed(pl.Series([5, 24, 43, 62, 81, 100]), bounds, cleaning, name="n").words.to_list() == [
        "a",
        "b",
        "c",
        "d",
        "e",
        "e",
    ]


@given(
    vectors=st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), max_size=5),
    bound=st.floats(1e-6, 1e6),
)
def test_bounded_vectors_keep_their_direction(vectors: list[list[float]], bound: float) -> None:
    values = np.array(vectors, np.float64).reshape(-1, 3)
    found = bounded(values, bound)
    assert np.isfinite(found).all()
    assert (np.linalg.norm(found.astype(np.float64), axis=1) <= 1 + 1e-6).all()
    with np.errstate(over="ignore"):
        inside = np.linalg.norm(values, axis=1) <= bound
    assert found[inside] == pytest.approx(values[inside] / bound, rel=1e-5, abs=1e-30)


@given(st.lists(st.integers(-(2**40), 2**40) | st.none(), min_size=1))
def test_ids_are_the_same_whatever_wrote_them(ids: list[int | None]) -> None:
    expected = [None if number is None else str(number) for number in ids]
    assert as_ids(pl.Series(ids, dtype=pl.Int64)).to_list() == expected
    assert as_ids(pl.Series(ids, dtype=pl.Float64)).to_list() == expected
    assert as_ids(pl.Series([number and f" {number}.0 " for number in expected], dtype=pl.String)).to_list() == expected


@given(st.lists(st.text(max_size=30)))
def test_texts_are_clean(texts: list[str]) -> None:
    for text in as_texts(pl.Series(texts, dtype=pl.String)).drop_nulls():
        assert text == " ".join(text.split())
        assert text
        assert len(text) <= LONGEST_TEXT


@given(st.lists(st.floats() | st.integers().map(float)), st.sampled_from([None, "unix", "unix-ms"]))
def test_times_are_possible(times: list[float], time_format: str | None) -> None:
    found = as_times(pl.Series(times, dtype=pl.Float64), time_format)
    assert all(0 <= second < 4_133_980_800 for second in found.drop_nulls())


@pytest.mark.parametrize("time_format", ["%Q", "%", "%z", "%Y %z", "\\", "\0"])
def test_an_odd_time_format_reads_nothing(time_format: str) -> None:
    assert as_times(pl.Series(["1970-01-02", None]), time_format).to_list() == [None, None]


def test_a_url_is_shown_without_its_password() -> None:
    assert "secret" not in shown_url("postgresql://me:secret@host/db")
    assert "host" in shown_url("postgresql://me:secret@host/db")
    assert "secret" not in shown_url("no url: secret")
