"""Readers of files at their bounds: the longest record, columns that are not there, bytes of compressed files, portions."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from client.config.table_location import Reading
from client.sources.readers import json_lines
from client.sources.readers.csv_records import BROKEN, header_of, records
from client.sources.readers.file_bytes import bytes_of, part_files
from client.sources.readers.json_lines import open_json_lines
from client.sources.readers.table_scan import Scan, reading
from shared.base.errors import InputError

MOST = 1 << 20


class TestRecords:
    @pytest.mark.parametrize(("lines", "whole"), [(2, True), (999, True), (1000, True), (1001, False)])
    def test_a_record_has_a_thousand_lines_at_most(self, lines: int, whole: bool) -> None:
        text = ['1,"a', *["b"] * (lines - 2), 'c"', "2,d"]
        found = records(text, ",", '"', header=False, line_breaks=True)
        if whole:
            assert found.others == [["1", "\n".join(["a", *["b"] * (lines - 2), "c"])]] and found.flaws == [None]
            assert (found.plain, list(found.plain_at), list(found.others_at)) == (["2,d"], [lines], [0])
        else:  # the line alone is broken, and no other
            assert found.flaws[0] == BROKEN and "2,d" in found.plain and "b" in found.plain

    @pytest.mark.parametrize(("over", "whole"), [(0, True), (1, False)])
    def test_a_record_has_a_million_characters_at_most(self, over: int, whole: bool) -> None:
        text = [f'1,"{"a" * (MOST - 5 + over)}', 'c"']
        assert sum(map(len, text)) == MOST + over
        assert (records(text, ",", '"', header=False, line_breaks=True).flaws[0] is None) is whole

    def test_what_is_no_record_is_where_it_is(self) -> None:
        lines = ["h,k", "1,a", '2,"b', 'x"', "3,c\r", '4,"d', '5,""e""', ""]
        found = records(lines, ",", '"', header=True, line_breaks=True)
        assert found.plain == ["1,a", "3,c"] and list(found.plain_at) == [1, 4]
        assert list(found.others_at) == [2, 5, 6] and list(found.flaws) == [None, BROKEN, None]
        alone = records(lines, ",", '"', header=True, line_breaks=False)
        assert list(alone.others_at) == [2, 3, 5, 6] and list(alone.flaws) == [BROKEN, None, BROKEN, None]

    def test_a_header_of_several_lines(self) -> None:
        lines = ['a,"b', 'c",d\r', "1,2,3"]
        assert header_of(lines, ",", '"') == ["a", "b\nc", "d"] and header_of(lines, ",", "") == ["a", '"b']
        found = records(lines, ",", '"', header=True, line_breaks=True)
        assert found.plain == ["1,2,3"] and list(found.plain_at) == [2] and found.others == []
        assert header_of(["a,b\r"], ",", '"') == ["a", "b"] and header_of([""], ",", '"') == [""]

    @pytest.mark.parametrize(("line", "cells"), [
        (r'1,"say \"x\"",2', ["1", 'say "x"', "2"]), (r'"a\\b\"",1', ["a\\b\"", "1"]), (r"1,a\b", None), (r'1,a\"b', None),
    ])  # fmt: skip
    def test_backslashes_escape_where_nothing_else_makes_the_line_whole(self, line: str, cells: list[str] | None) -> None:
        found = records([line, "3,d"], ",", '"', header=False, line_breaks=True)
        assert "3,d" in found.plain
        if cells is not None:
            assert found.others == [cells] and found.flaws == [None]


def scan(names: list[str] | None, **over: object) -> Scan:
    return Scan(**{"where": "f.csv", "names": names, "take": lambda keys: (), **over})  # type: ignore[arg-type]


class TestColumns:
    def test_by_name_and_by_position_from_one(self) -> None:
        found = scan(["a", "b", "c"])
        assert [found.find(at) for at in (1, 3, 4)] == [0, 2, None]
        assert [found.find("b", offset=by) for by in (0, 1, 2)] == [1, 2, None] and found.find("d") is None
        assert scan(["a", "b", "a"]).find("a") == 0  # the first of several

    def test_without_a_header_by_position_alone(self) -> None:
        found = scan(None)
        assert [found.find(at, offset=by) for at, by in ((1, 0), (2, 0), (2, 3))] == [0, 1, 4] and found.find("a") is None

    def test_of_objects_by_key_alone(self) -> None:
        found = scan(None, keyed=True, seen=lambda: ["a"])
        assert found.find("b") == "b" and found.find(1) is None and found.find("a", offset=1) is None
        assert found.find("a", public=True) == "a" and found.find("b", public=True) is None

    def test_one_name_is_enough_for_a_header(self) -> None:
        named = {("a",): True, ("", "a"): True, ("a", ""): True, ("", ""): False, (): False}
        assert {names: scan(list(names)).named for names in named} == named and not scan(None).named

    @pytest.mark.parametrize(("count", "more"), [(1, False), (50, False), (51, True)])
    def test_fifty_are_named(self, count: int, more: bool) -> None:
        names = [f"n{at}" for at in range(count)]
        said = scan(names).columns()
        assert said == f"expected one of: {', '.join(names[:50])}" + (", ..." if more else "")
        assert scan(None, keyed=True, seen=lambda: names).columns() == said

    def test_where_there_are_none(self) -> None:
        assert (
            scan(None, seen=lambda: ["", ""]).columns() == "the file has no header and 2 columns; expected a position from 1 to 2"
        )
        assert scan(None, keyed=True).columns() == "no row has any"

    @pytest.mark.parametrize(("names", "over", "cure"), [
        (["userid", "x"], {}, "did you mean 'userid'? In a source: columns = { user = \"userid\" }; expected one of: userid, x"),
        (["# made by x"], {"decoded": True}, "if the first line is a remark: comment = \"#\"; expected one of: # made by x"),
        (["a;b;c"], {"decoded": True}, "the first line seems to be cut by ';': separator = \";\"; expected one of: a;b;c"),
        (["a::b,c"], {"decoded": True}, "the first line seems to be cut by '::': separator = \"::\"; expected one of: a::b,c"),
        (["a;b", "c"], {"decoded": True}, "expected one of: a;b, c"),
        (["a;b;c"], {}, "expected one of: a;b;c"),
    ])  # fmt: skip
    def test_a_missing_one_is_answered_with_the_line_to_add(self, names: list[str], over: dict[str, bool], cure: str) -> None:
        assert scan(names, **over).missing({"user": "userId"}) == cure


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    "": bytes,
}


class TestBytes:
    @pytest.mark.parametrize("suffix", COMPRESSORS)
    def test_all_of_them_or_the_first(self, suffix: str, tmp_path: Path) -> None:
        path, data = tmp_path / f"rows.csv{suffix}", b"user,item\n" * 1000
        path.write_bytes(COMPRESSORS[suffix](data))
        assert bytes_of(path) == data
        for most in (0, 1, 25, len(data), len(data) + 1):
            assert bytes_of(path, most) == data[:most]

    @pytest.mark.parametrize("suffix", [one for one in COMPRESSORS if one])
    def test_several_in_one_file_are_one(self, suffix: str, tmp_path: Path) -> None:
        path, compress = tmp_path / f"rows.csv{suffix}", COMPRESSORS[suffix]
        path.write_bytes(compress(b"a,b\n") + compress(b"1,2\n"))
        assert bytes_of(path) == b"a,b\n1,2\n"

    @pytest.mark.parametrize("suffix", [one for one in COMPRESSORS if one])
    def test_what_is_cut_or_is_none_is_an_error(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"rows.csv{suffix}"
        path.write_bytes(COMPRESSORS[suffix](b"user,item\n" * 1000)[:-4])
        with pytest.raises((EOFError, ValueError, OSError)):
            bytes_of(path)
        path.write_bytes(b"user,item\n")
        with pytest.raises(InputError, match="is not compressed, although its name says so") as caught:
            bytes_of(path)
        assert caught.value.do == "call it 'rows.csv'"

    def test_frames_that_hold_no_data_are_passed_over(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv.zst"
        path.write_bytes(b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note" + COMPRESSORS[".zst"](b"a,b\n"))
        assert bytes_of(path, 4) in (b"a,b\n", b"")

    def test_parts_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for name in ("b.csv", "a.csv", "part-00001", "_SUCCESS", ".a.csv.crc", "sub/c.parquet", "_x/d.csv", "notes.txt.md"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
        (tmp_path / "empty.csv").write_text("")
        named = [str(one.relative_to(tmp_path)) for one in part_files(tmp_path)]
        assert named == ["a.csv", "b.csv", "part-00001", "sub/c.parquet"]
        assert [one.name for one in part_files(tmp_path / "*.csv")] == ["a.csv", "b.csv"]
        assert part_files(tmp_path / "empty.csv") == [tmp_path / "empty.csv"]  # which its reader refuses
        for path, found in (("e*.csv", "every part file is empty"), ("z*", "no file matches"), ("z.csv", "does not exist")):
            with pytest.raises(InputError, match=found):
                part_files(tmp_path / path)
        (tmp_path / "none").mkdir()
        with pytest.raises(InputError, match="no file of rows is in this folder"):
            part_files(tmp_path / "none")

    def test_what_is_neither_a_file_nor_a_folder(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.csv")
        with pytest.raises(InputError, match="is not a file"):
            part_files(tmp_path / "pipe.csv")


@pytest.mark.parametrize(("error", "quote"), [
    (ValueError("x" * 201 + "\nmore"), "x" * 200), (ValueError("first\nsecond"), "first"), (EOFError(), "EOFError"),
    (RecursionError("deep"), "deep"), (pl.exceptions.ComputeError("odd"), "odd"),
])  # fmt: skip
def test_of_what_another_library_says_the_first_line_is_shown(error: Exception, quote: str) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught, reading("f.csv"):
        raise error
    assert (caught.value.quote, caught.value.where) == (quote, "f.csv")


def test_what_is_said_of_a_file_already_is_said_as_it_is() -> None:
    with pytest.raises(InputError, match="mine"), reading("f.csv"):
        raise InputError("mine")
    with pytest.raises(InputError, match="cannot be read: Permission denied"), reading("f.csv"):
        raise PermissionError(13, "Permission denied")


class TestObjects:
    def test_it_has_keys_and_was_decoded(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("{}")
        found = open_json_lines(path, Reading(path=(path,)))
        assert (found.names, found.keyed, found.decoded, found.where) == (None, True, True, str(path))

    def taken(self, folder: Path, text: str, *, name: str = "rows.jsonl") -> list[tuple[object, object, str | None]]:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        found = []
        for portion in open_json_lines(path, Reading(path=(path,))).take(["a", "b"]):
            found += list(zip(portion.columns["a"], portion.columns["b"], portion.flaws, strict=True))
        return found

    @pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
    def test_portions_hold_every_row_once(self, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_lines, "_ROWS_AT_ONCE", 2)
        text = "".join(json.dumps({"a": at}) + "\n" for at in range(rows))
        assert self.taken(tmp_path, text) == [(at, None, None) for at in range(rows)]

    def test_each_line_is_read_by_itself(self, tmp_path: Path) -> None:
        lines = [
            '{"a": 1}',
            "",
            "  ",
            '{"a": 2',
            '[{"a": 3}]',
            '{"b": 4} x',
            '\t{"b": 5} ',
            "7",
            '{"a": "x\u2028y"}',
            '{"a": 8}\r{"a": 9}',
            '{"a":\r 10}\r',
        ]
        flaw = json_lines.BROKEN
        assert self.taken(tmp_path, "\n".join(lines)) == [
            (1, None, None), (None, None, flaw), (None, None, flaw), (None, None, flaw), (None, 5, None), (None, None, flaw),
            ("x\u2028y", None, None), (8, None, None), (9, None, None), (10, None, None),
        ]  # fmt: skip

    def test_an_array_is_its_objects_in_a_file_that_may_hold_one(self, tmp_path: Path) -> None:
        text = '\n [ {"a": 1},\n {"b": 2}, 3 ]\n'
        flaw = json_lines.BROKEN
        assert self.taken(tmp_path, text, name="rows.json") == [(1, None, None), (None, 2, None), (None, None, flaw)]
        assert [row[2] for row in self.taken(tmp_path, text)] == [flaw] * 2
        assert self.taken(tmp_path, "", name="rows.json") == [] and len(self.taken(tmp_path, "[{", name="rows.json")) == 1

    def test_the_keys_that_there_are_in_their_order(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('{"b": 1, "a": 2}\nx\n{"c": 1, "a": 2}\n')
        assert list(open_json_lines(path, Reading(path=(path,))).seen()) == ["b", "a", "c"]
        with pytest.raises(InputError, match="cannot be read"):
            open_json_lines(tmp_path / "gone.jsonl", Reading(path=(path,)))


def test_a_series_of_flaws_is_text_though_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    (portion,) = open_json_lines(path, Reading(path=(path,))).take(["a"])
    assert portion.flaws.dtype == pl.String
