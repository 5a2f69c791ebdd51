"""Files that are no delimited text although they are named as such: what their first bytes say, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from client.sources.readers.table_scan import reading
from shared.base.errors import InputError

_SQLITE = b"SQLite format 3\x00"
_COMPRESSED = "give its name the suffix {} behind its own, as in '{}'"
_SIGNS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "is compressed by gzip", ".gz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", ".zst"),
    (b"\xfd7zXZ\x00", "is compressed by xz", ".xz"),
    (b"BZh91AY&SY", "is compressed by bzip2", ".bz2"),
    (b"PK\x03\x04", "is a ZIP archive, as a spreadsheet (.xlsx) is", "save the sheet as CSV in UTF-8, or unpack the archive"),
    (b"\xd0\xcf\x11\xe0", "is a spreadsheet (.xls)", "save the sheet as CSV in UTF-8"),
    (_SQLITE, "is a SQLite database", 'url = "sqlite:///{}" with table = "..." in the place of \'path\''),
    (b"PAR1", "is Parquet", 'format = "parquet" in the source, or the suffix .parquet'),
    (b"ARROW1", "is an Arrow file", "write it as Parquet"),
    (b"Obj\x01", "is an Avro file", "write it as Parquet or as JSON lines"),
    (b"ORC", "is an ORC file", "write it as Parquet"),
)
"""First bytes, what such a file is, and what to do: the suffix that says so where a file is compressed."""
_WIDE = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_PAGE = re.compile(rb"(?i)\s*<(?:!doctype html|html|\?xml)\b")
_LFS = b"version https://git-lfs.github.com/"
_OBJECT = re.compile(rb'\s*\[?\s*\{\s*"')


def is_sqlite(path: Path) -> bool:
    """Whether a file is a SQLite database, whatever it is called."""
    with reading(str(path)), path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def require_text(head: bytes, path: Path, encoding: str) -> None:
    """Check that a file with a header begins as text does.

    Args:
        head: Its first bytes, after decompression.

    Raises:
        InputError: it does not.
    """
    for sign, what, do in _SIGNS:
        # Letters alone may begin a header, too; behind them a binary file has bytes that no text has.
        if head.startswith(sign) and (not sign.isalnum() or b"\x00" in head[:4096]):
            cure = _COMPRESSED.format(do, path.name + do) if do.startswith(".") else do.format(path.name)
            raise InputError(f"{what}, and no delimited text", where=str(path), do=cure)
    if head.startswith(_LFS):
        raise InputError("is a pointer of Git LFS, and not the file", where=str(path), do="fetch the file itself: git lfs pull")
    if _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        do = "fetch the file again: a server may have answered with a page that says why not; XML is to be exported as CSV"
        raise InputError("is a page of HTML or XML, and no delimited text", where=str(path), do=do)
    if encoding != "utf-8":
        return
    for sign, name in _WIDE:
        if head.startswith(sign):
            do = f'convert the file to UTF-8 (a public table may say encoding = "{name.lower()}")'
            raise InputError(f"is {name}, and not UTF-8", where=str(path), do=do)
    if _OBJECT.match(head):
        raise InputError("holds JSON, and no delimited text", where=str(path), do='format = "jsonl" in the source')
    if b"\x00" in head.split(b"\n", 1)[0]:
        raise InputError(
            "is a binary file, and no delimited text", where=str(path), do="export the table as CSV, Parquet or JSON lines"
        )
