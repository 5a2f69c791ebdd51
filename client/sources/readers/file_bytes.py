"""Which files a path means, and their bytes, decompressed."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
from pathlib import Path
from typing import IO, cast

import zstandard

from client.config.table_location import COMPRESSED, DELIMITED, SUFFIXES, suffix_of
from shared.base.errors import InputError

_MAGIC = {".gz": (b"\x1f\x8b", 0), ".bz2": (b"BZh", 0), ".xz": (b"\xfd7zXZ\x00", 0), ".zst": (b"\xb5\x2f\xfd", 1)}
"""Suffix -> the bytes by which compressed files begin, and the place of the first of these."""
_SKIPPABLE = b"\x2a\x4d\x18"
_PARTS = {*DELIMITED, *SUFFIXES} - {".npy"}


def part_files(path: Path) -> list[Path]:
    """The files that a path of the platform file means, in the order of their names: itself, a folder's, or a pattern's.

    A path that is there is no pattern, whatever its name. Of a folder and of a pattern, empty files say nothing.

    Raises:
        InputError: there is none.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [one for one in path.rglob("*") if is_part(one, path)]
        what = "no file of rows is in this folder"
    elif path.exists():
        raise InputError("is not a file", where=str(path), do="check 'path' in the platform file")
    else:
        found = [Path(one) for one in glob.glob(str(path), recursive=True) if Path(one).is_file()]  # noqa: PTH207 - absolute
        what = "no file matches this pattern" if glob.has_magic(str(path)) else "the file does not exist"
    full = sorted(one for one in found if one.stat().st_size)
    if not full:
        found_what = "every part file is empty" if found else what
        raise InputError(found_what, where=str(path), do="check 'path' in the platform file")
    return full


def is_part(path: Path, folder: Path) -> bool:
    """Whether a file below a folder holds rows, by its name: no mark of success, no checksum, no document."""
    hidden = any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)
    known = suffix_of(path) in _PARTS or path.name.startswith("part-")
    return not hidden and known and path.is_file()


def is_compressed(path: Path) -> bool:
    """Whether its name says that a file is compressed."""
    return path.suffix.lower() in COMPRESSED


def bytes_of(path: Path, most: int = -1) -> bytes:
    """The bytes of a file, or its first ones, decompressed if its name says so.

    Raises:
        OSError, EOFError, ValueError, zlib.error: it cannot be read, or what is compressed is damaged.
        InputError: it is not compressed, although its name says so.
    """
    _require_compressed(path)
    try:
        if most < 0 and path.suffix.lower() == ".zst":
            return _whole_zstd(path.read_bytes())
        with _opened(path) as file:
            return file.read(most)
    except (zstandard.ZstdError, lzma.LZMAError) as error:
        raise ValueError(str(error)) from None


def _require_compressed(path: Path) -> None:
    if not is_compressed(path):
        return
    magic, at = _MAGIC[path.suffix.lower()]
    with path.open("rb") as file:
        begin = file.read(at + len(magic))[at:]
    if not magic.startswith(begin) and begin != _SKIPPABLE:
        raise InputError("is not compressed, although its name says so", where=str(path), do=f"call it '{path.stem}'")


def _whole_zstd(data: bytes) -> bytes:
    # Read as a stream, a truncated file would end without an error.
    parts = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(data))
        if not frame.eof:
            raise EOFError("the compressed data ends before its end")
        data = frame.unused_data
    return b"".join(parts)


def _opened(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return cast(IO[bytes], zstandard.open(path))
    return path.open("rb")
