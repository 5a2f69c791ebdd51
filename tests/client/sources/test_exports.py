"""Exports as programs write them: compressed, in parts, with odd line ends, remarks and marks."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tomli_w
import zstandard

from client.config.platform_file import load
from client.setup.schema_inference import guess
from client.setup.table_preview import sample_file
from client.sources.platform_tables import read_tables, require_items
from client.sources.readers.delimited import JOINED, RAGGED
from client.sources.tables import Tables
from shared.base.errors import InputError
from tests.support.read_rows import rows_of

LOG = "user,item\n1,a\n2,b\n1,b\n"
EXPECTED = {"1": ["a", "b"], "2": ["b"]}


def read(folder: Path, **source: Any) -> Tables:
    values = {"name": "p", "users": 99, "privacy": {"epsilon": 1.0}, "sources": {"log": {"kind": "interactions", **source}}}
    (folder / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return read_tables(load(folder / "p.toml"))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_compressed_files_are_read(compressor: str, quoted: bool, tmp_path: Path) -> None:
    text = LOG.replace("a", '"a"') if quoted else LOG
    lines = "".join(json.dumps({"user": user, "item": item}) + "\n" for user, items in EXPECTED.items() for item in items)
    pl.DataFrame({"user": [1, 2, 1], "item": ["a", "b", "b"]}).write_parquet(tmp_path / "log.parquet")
    contents = {"csv": text.encode(), "jsonl": lines.encode(), "parquet": (tmp_path / "log.parquet").read_bytes()}
    for suffix, content in contents.items():
        name = f"log.{suffix}.{compressor}"
        (tmp_path / name).write_bytes(COMPRESSORS[compressor](content))
        assert rows_of(read(tmp_path, path=name)) == EXPECTED
        assert sample_file(tmp_path / name).name == "log" and sample_file(tmp_path / name).frame.columns == ["user", "item"]
        (tmp_path / name).write_bytes(COMPRESSORS[compressor](content)[:-9])
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path, path=name)


def test_json_lines_may_be_named_json(tmp_path: Path) -> None:
    rows = [{"user": 1, "item": "a"}, {"user": 2, "item": "b"}, {"user": 1, "item": "b"}]
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps(rows, indent=2)):
        (tmp_path / "log.json").write_text(text, encoding="utf-8")
        assert rows_of(read(tmp_path, path="log.json")) == EXPECTED


@pytest.mark.parametrize("path", ["parts", "parts/part-*.csv", "parts/**/*.csv", ["parts/part-0.csv", "parts/sub"]])
def test_a_folder_and_a_pattern_are_their_parts(path: Any, tmp_path: Path) -> None:
    (tmp_path / "parts" / "sub").mkdir(parents=True)
    files = {"part-0.csv": "user,item\n1,a\n", "part-1.csv": "", "_SUCCESS": "", ".part-0.csv.crc": "crc", "README": "no rows"}
    second = "parts/part-2.csv" if path == "parts/part-*.csv" else "parts/sub/part-2.csv"
    for name, text in files.items():
        (tmp_path / "parts" / name).write_text(text, encoding="utf-8")
    (tmp_path / second).write_text("item,user\nb,2\nb,1.0\n", encoding="utf-8")  # columns are found by name
    tables = read(tmp_path, path=path)
    assert rows_of(tables) == EXPECTED


@pytest.mark.parametrize(
    "path, found", [("none-*.csv", "no file matches"), ("empty", "every part file is empty"), ("no", "no file of rows")]
)
def test_parts_that_are_not_there_are_an_error_in_words(path: str, found: str, tmp_path: Path) -> None:
    for folder, name in (("empty", "part-0.csv"), ("no", "_SUCCESS")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(InputError, match=found):
        read(tmp_path, path=path)


@pytest.mark.parametrize("quoted", [False, True])
def test_lines_that_end_in_a_carriage_return(quoted: bool, tmp_path: Path) -> None:
    text = LOG.replace("\n", "\r").replace("a", '"a"' if quoted else "a")
    (tmp_path / "log.csv").write_bytes(text.encode())
    assert rows_of(read(tmp_path, path="log.csv")) == EXPECTED
    assert list(sample_file(tmp_path / "log.csv").frame.columns) == ["user", "item"]
    # A carriage return within a row says nothing of the line ends: the header does.
    (tmp_path / "log.csv").write_bytes(b"user,item\n1,a\r2,b\n3,c\n")
    assert "3" in rows_of(read(tmp_path, path="log.csv"))


MIXED = {"CRLF and CR": b"user,item\r\n1,a\r2,b\r\n3,c\r\n", "LF and CR": b"user,item\n1,a\r2,b\n3,c\r\n"}


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("separator", [",", "::"])
@pytest.mark.parametrize("ends", MIXED)
def test_rows_between_carriage_returns_alone_are_read_or_refused_with_the_line_to_add(
    ends: str, separator: str, quoted: bool, tmp_path: Path
) -> None:
    """They were rows with too many columns, and the hint was to look at separator and quotes."""
    content = MIXED[ends].replace(b",", separator.encode()).replace(b"c", b'"c"' if quoted and separator == "," else b"c")
    (tmp_path / "log.csv").write_bytes(content)
    how = {"path": "log.csv"} if separator == "," else {"path": "log.csv", "separator": separator}
    whole = {"1": ["a"], "2": ["b"], "3": ["c"]}
    for further in ({}, {"ragged": True}):
        tables = read(tmp_path, **how, **further)
        assert rows_of(tables) == {"3": ["c"]}
        (drop,), (warning,) = tables.reports[0].dropped, tables.reports[0].warnings
        assert (drop.reason, drop.rows) == (JOINED, 1) and "carriage_returns = true" in warning and "separator" not in warning
    assert rows_of(read(tmp_path, **how, carriage_returns=True)) == whole
    # Without a header a row has as many columns as it has, unless it is said how many there are.
    (tmp_path / "log.csv").write_bytes(content.partition(b"\n")[2])
    for further in ({}, {"fields": 2}):
        tables = read(tmp_path, **how, **further, header=False, columns={"user": 1, "item": 2})
        assert rows_of(tables) == {"3": ["c"]} and [drop.reason for drop in tables.reports[0].dropped] == [JOINED]
    assert rows_of(read(tmp_path, **how, header=False, columns={"user": 1, "item": 2}, carriage_returns=True)) == whole


def test_a_carriage_return_within_a_cell_ends_no_row(tmp_path: Path) -> None:
    """Writers of tables on Linux leave it without quotation marks."""
    (tmp_path / "log.csv").write_bytes(b"user,item,note\n1,a,so\rgood\n2,b,fine\n")
    tables = read(tmp_path, path="log.csv")
    assert rows_of(tables) == {"1": ["a"], "2": ["b"]} and not tables.reports[0].warnings
    (tmp_path / "log.csv").write_bytes(b"user,item,note\n1,a,so\rgood,x\n2,b,fine\n")
    reasons = {
        said: [drop.reason for drop in read(tmp_path, path="log.csv", carriage_returns=said).reports[0].dropped]
        for said in (False, True)
    }
    assert reasons == {False: [RAGGED], True: []}
    # A file whose header ends so may be one of whatever ends.
    (tmp_path / "log.csv").write_bytes(b"user,item\r1,a\r\n2,b\n1,b\r")
    assert rows_of(read(tmp_path, path="log.csv")) == EXPECTED


def test_other_files_whose_lines_end_in_a_carriage_return(tmp_path: Path) -> None:
    rows = [{"user": user, "item": item} for user, items in EXPECTED.items() for item in items]
    (tmp_path / "log.jsonl").write_bytes(b"\r".join(json.dumps(row).encode() for row in rows[:2]) + b"\n{\r")
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(json.dumps(rows[2]).encode() + b'\n{"user": 9,\r "item": "z"}\r\n')
    tables = read(tmp_path, path="log.jsonl")
    assert rows_of(tables) == {**EXPECTED, "9": ["z"]}  # space between the tokens of an object is no end of it
    (tmp_path / "ids.csv").write_bytes(b"item\r\na\rb\r\nc\r\n")
    (tmp_path / "wide.csv").write_bytes("item\r\na\rb\r\nc\r\n".encode("utf-16"))
    (tmp_path / "log.csv").write_text(LOG + "1,c\n")
    whole = {"1": ["a", "b", "c"], "2": ["b"]}
    for further, expected in (
        ({"path": "ids.csv"}, {"1": ["c"]}),
        ({"path": "ids.csv", "carriage_returns": True}, whole),
        ({"path": "wide.csv", "encoding": "utf-16", "carriage_returns": True}, whole),
    ):
        values = {
            "name": "p",
            "users": 99,
            "privacy": {"epsilon": 1.0},
            "catalogue": {"column": "item", **further},
            "sources": {"log": {"kind": "interactions", "path": "log.csv"}},
        }
        (tmp_path / "p.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
        assert rows_of(read_tables(load(tmp_path / "p.toml"))) == expected


def test_remarks_before_the_header_and_between_rows(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("# exported 2024\n# by hand\n" + LOG, encoding="utf-8")
    assert rows_of(read(tmp_path, path="log.csv")) == EXPECTED
    (tmp_path / "log.csv").write_text("%% exported, 2024\n" + LOG.replace("2,b", "%% half\n2,b"), encoding="utf-8")
    assert rows_of(read(tmp_path, path="log.csv", comment="%%")) == EXPECTED
    # A first column may be called so.
    (tmp_path / "log.csv").write_text(LOG.replace("user", "#user"), encoding="utf-8")
    assert rows_of(read(tmp_path, path="log.csv", columns={"user": "#user"})) == EXPECTED


def _excel_sheet() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return held.getvalue()


def _sqlite_file() -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("create table log(user, item)")
        return bytes(database.serialize())


def _parquet_file() -> bytes:
    held = io.BytesIO()
    pl.DataFrame({"user": [1], "item": ["a"]}).write_parquet(held)
    return held.getvalue()


@pytest.mark.parametrize(
    "content, cure",
    [
        (gzip.compress(LOG.encode()), "log.csv.gz"),
        (zstandard.compress(LOG.encode()), "log.csv.zst"),
        (bz2.compress(LOG.encode()), "log.csv.bz2"),
        (lzma.compress(LOG.encode()), "log.csv.xz"),
        (_excel_sheet(), "save the sheet as CSV"),
        (_sqlite_file(), "sqlite:///log.csv"),
        (_parquet_file(), 'format = "parquet"'),
        (LOG.encode("utf-16"), "convert the file to UTF-8"),
        (b'{"user": 1, "item": "a"}\n', 'format = "jsonl"'),
        (b"\x01\x00\x02\n", "export the table"),
    ],
)
def test_what_is_no_text_is_named_with_the_cure(content: bytes, cure: str, tmp_path: Path) -> None:
    """Its bytes were printed as the names of columns."""
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"no delimited text|and not UTF-8") as error:
        read(tmp_path, path="log.csv")
    assert cure in error.value.do and "\x00" not in str(error.value)


def test_a_header_of_letters_that_begin_binary_files_is_a_header(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("PAR1,user,item\n0,1,a\n0,2,b\n0,1,b\n")
    assert rows_of(read(tmp_path, path="log.csv")) == EXPECTED


def test_a_compressed_file_that_is_cut_before_its_first_byte(tmp_path: Path) -> None:
    """It was said to begin with an empty line."""
    (tmp_path / "log.csv.zst").write_bytes(zstandard.compress(LOG.encode())[:-9])
    with pytest.raises(InputError, match="cannot be read") as error:
        read(tmp_path, path="log.csv.zst")
    assert "ends before its end" in error.value.quote


@pytest.mark.parametrize(
    "header, cure",
    [
        ("user;item", 'separator = ";"'),
        ("user\titem", r'separator = "\t"'),
        ("user|item", 'separator = "|"'),
        ("# of June, 2024\nuser,item", 'comment = "#"'),
        ("User ,Item", 'columns = { user = "User", item = "Item" }'),
        ("users,item", 'columns = { user = "users" }'),
    ],
)
def test_a_column_that_is_not_there_is_answered_with_the_line_to_add(header: str, cure: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(header + "\n1,a\n", encoding="utf-8")
    with pytest.raises(InputError, match="column 'user'") as error:
        read(tmp_path, path="log.csv")
    assert cure in error.value.do


@pytest.mark.parametrize("quoted", [False, True])
def test_the_line_that_excel_writes_before_the_header(quoted: bool, tmp_path: Path) -> None:
    rows = LOG.replace(",", ";").replace("a", '"a"' if quoted else "a")
    (tmp_path / "log.csv").write_bytes(b"\xef\xbb\xbf" + ("sep=;\n" + rows).replace("\n", "\r\n").encode())
    assert rows_of(read(tmp_path, path="log.csv")) == EXPECTED
    sample = sample_file(tmp_path / "log.csv")
    assert sample.frame.columns == ["user", "item"] and sample.keys["separator"] == ";"


def test_backslashes_before_quotation_marks(tmp_path: Path) -> None:
    r"""Also where nothing declares them: `\"` in a row that is well formed in no other way."""
    text = 'user;item\n"1";"The \\"Real; One\\""\n"2";"C:\\"\n"3";"a ""b"""\n'
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    expected = {"1": ['The "Real; One"'], "2": ["C:\\"], "3": ['a "b"']}
    assert rows_of(read(tmp_path, path="log.csv", separator=";")) == expected
    (tmp_path / "log.csv").write_text('user;item\n"1";"a \\"b\\""\n"2";"C:\\\\"\n', encoding="utf-8")
    assert rows_of(read(tmp_path, path="log.csv", separator=";", escape="\\")) == {"1": ['a "b"'], "2": ["C:\\"]}
    with pytest.raises(InputError, match="escape"):
        read(tmp_path, path="log.csv", escape='"')


TEXTS = {
    "cp1252": "Ångström – “quoted” for 5 €, café à la carte, naïve, Übung\n" * 3,
    "gb18030": "三体 刘慈欣 科幻小说 北京图书大厦, ASCII between 活着\n" * 3,
    "": "Ångström, 三体\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_the_encoding_of_a_draft(encoding: str, tmp_path: Path) -> None:
    text = "item_id;title\n" + "".join(f"{at};{line}\n" for at, line in enumerate(TEXTS[encoding].splitlines()))
    (tmp_path / "books.csv").write_bytes(text.encode(encoding or "utf-8"))
    sample = sample_file(tmp_path / "books.csv")
    assert sample.keys.get("encoding", "") == encoding
    assert sample.frame["title"][0] == TEXTS[encoding].splitlines()[0]


def test_a_separator_within_quotes_is_none(tmp_path: Path) -> None:
    rows = "".join(f'"{at}";"Tom, a; story{"; more" * (at % 2)}";"{at % 5}"\n' for at in range(9))
    (tmp_path / "books.csv").write_text('"user_id";"item_id";"rating"\n' + rows, encoding="utf-8")
    sample = sample_file(tmp_path / "books.csv")
    assert sample.keys["separator"] == ";"
    found = guess(sample)
    assert found is not None and dict(found.columns) == {"user": "user_id", "item": "item_id", "value": "rating"}


def test_an_error_of_a_draft_names_the_persons_own_file(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\n\n", encoding="utf-8")
    with pytest.raises(InputError) as raised:
        sample_file(tmp_path / "log.csv")
    assert raised.value.where == str(tmp_path / "log.csv")


def test_rows_that_are_left_out_name_the_cure(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes("user,item\n1,a\n2,ä\n".encode("latin-1") + b"3,b,c,d\n" + b'4,"open\n')
    (report,) = read(tmp_path, path="log.csv").reports
    assert sum(drop.rows for drop in report.dropped) == 3
    assert {word for word in ("encoding", "separator", "escape") if any(word in text for text in report.warnings)} == {
        "encoding",
        "separator",
        "escape",
    }


def test_the_header_of_a_joined_export_is_no_row_in_whatever_letters(tmp_path: Path) -> None:
    """`USER,ITEM` in the middle of joined files was a user of the name `USER`."""
    (tmp_path / "log.csv").write_text(LOG + "USER,Item\n" + "user,item\n" + "3,User\n", encoding="utf-8")
    tables = read(tmp_path, path="log.csv")
    assert rows_of(tables) == {**EXPECTED, "3": ["User"]}
    assert [(one.reason, one.rows) for one in tables.reports[0].dropped] == [("the header again", 2)]


@pytest.mark.parametrize(
    "name, content, found, cure",
    [
        ("log.csv", "<!DOCTYPE html>\n<html><body>403</body></html>\n", "a page of HTML", "fetch the file again"),
        ("log.csv", '\ufeff<?xml version="1.0"?>\n<rows/>\n', "a page of HTML or XML", "exported as CSV"),
        ("log.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "pointer of Git LFS", "git lfs pull"),
        *((f"log.csv{suffix}", LOG, "is not compressed", "'log.csv'") for suffix in (".gz", ".bz2", ".xz", ".zst")),
        ("log.json", json.dumps({"data": [{"user": 1, "item": "a"}]}), "missing user", "jq -c '.data[]'"),
        ("log.json", json.dumps({"user": 1, "item": "a"}, indent=1) * 2, "no JSON object", "`jq -c .`"),
        ("log.csv", 'user,item,note\n1,a,"two\nlines"\n', "mark is not closed", "line_breaks = true"),
    ],
)
def test_what_was_fetched_or_written_otherwise_is_answered_with_its_cure(
    name: str, content: str, found: str, cure: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read(tmp_path, path=name)
    assert found in error.value.found and cure in error.value.do and "separator" not in error.value.do


def test_of_several_columns_of_one_name_it_is_said_which_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,user\n1,a,8\n2,b,9\n", encoding="utf-8")
    (report,) = read(tmp_path, path="log.csv").reports
    assert report.warnings == ("several columns are called 'user': the first is read; user = POSITION takes another",)
    assert rows_of(read(tmp_path, path="log.csv", columns={"user": 3})) == {"8": ["a"], "9": ["b"]}


def test_exports_of_mongodb_are_read(tmp_path: Path) -> None:
    """Each id was an object, and no user was left."""
    rows = [
        {"user": {"$oid": "5f0a"}, "item": {"$numberLong": "1790000000000000001"}, "time": {"$date": "2021-02-13T10:00:00Z"}},
        {"user": {"$oid": "5f0a"}, "item": 7, "time": {"$date": {"$numberLong": "1613210400000"}}},
        {
            "user": {"$uuid": "F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6"},
            "item": {"$numberInt": "7"},
            "time": {"$date": 1613210400000},
        },
        {"user": {"$oid": "5f0b", "more": 1}, "item": 7, "time": None},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tables = read(tmp_path, path="log.jsonl", columns={"time": "time"})
    assert rows_of(tables) == {"5f0a": ["1790000000000000001", "7"], "f81d4fae-7dec-11d0-a765-00a0c91e6bf6": ["7"]}
    assert tables.interactions.time is not None and set(tables.interactions.time.tolist()) == {1_613_210_400}
    frame = pl.DataFrame({"user": [{"$oid": "5f0a"}], "item": ["a"]})
    frame.write_parquet(tmp_path / "log.parquet")
    assert rows_of(read(tmp_path, path="log.parquet")) == {"5f0a": ["a"]}


def test_what_reading_said_is_said_where_nothing_is_left_to_choose_from(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user,item\r\n1,a\r2,b\r3,c\r\n4,d\r\n")
    with pytest.raises(InputError, match="the catalogue has 1 item") as error:
        require_items(read(tmp_path, path="log.csv"), where="p.toml")
    assert "carriage_returns = true" in error.value.do
