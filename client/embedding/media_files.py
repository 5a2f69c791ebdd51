"""Which files there are to embed, and whose they are: an item's id is the name of its file, or what a CSV file says."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import InputError

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".mp3", ".aiff", ".aif"})
FILE, ITEM = "file", "item"
"""Columns of a CSV file that says whose files are; several files of one item give one vector."""


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """One file.

    Args:
        item: Id of the item that it is of.
        size: Bytes.
        changed: Nanoseconds since 1970.
    """

    path: Path
    item: str
    size: int
    changed: int


@dataclass(frozen=True, kw_only=True)
class FoundMedia:
    """Files to embed.

    Args:
        files: In the order of their paths.
        passed: Files that are left out, and why.
    """

    files: Sequence[MediaFile]
    passed: Mapping[Path, str]


def find_media(places: Sequence[Path], *, endings: frozenset[str], ids: Path | None = None) -> FoundMedia:
    """Files that are named, and those in named folders and all folders in these.

    Args:
        endings: Of the files that folders are searched for; a file that is named itself may end in anything.
        ids: A CSV file with columns `file` (a name, or a path within a named folder) and `item`; without it, a file's name
            without its ending is the item's id.

    Raises:
        InputError: something that is named is not there, or the CSV file cannot be used.
    """
    known = None if ids is None else _ids(ids)
    found: dict[Path, tuple[str, ...]] = {}
    passed: dict[Path, str] = {}
    for place in places:
        if place.is_dir():
            for path in sorted(place.rglob("*")):
                if not path.is_file() or any(part.startswith(".") for part in path.relative_to(place).parts):
                    continue
                if path.suffix.lower() in endings:
                    found[path] = (path.relative_to(place).as_posix(), path.name)
                else:
                    passed[path] = f"not of a kind that is embedded ({path.suffix or 'no ending'})"
        elif place.is_file():
            found[place] = (str(place), place.name)
        else:
            raise InputError("there is no such file or folder", where=str(place), do="name files, or folders that hold them")
    files = []
    for path, names in sorted(found.items()):
        item = path.stem if known is None else next((known[name] for name in names if name in known), "")
        if not item:
            passed[path] = f"{ids} says no item of it"
            continue
        stat = path.stat()
        files.append(MediaFile(path=path, item=item, size=stat.st_size, changed=stat.st_mtime_ns))
    return FoundMedia(files=files, passed=passed)


def _ids(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            missing = {FILE, ITEM} - set(rows.fieldnames or ())
            if missing:
                raise InputError(
                    f"no column {' or '.join(map(repr, sorted(missing)))}",
                    where=str(path),
                    do=f"expected a CSV file with a header and the columns {FILE!r} and {ITEM!r}",
                )
            return {(row[FILE] or "").strip(): (row[ITEM] or "").strip() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV: {error}", where=str(path), do="give a CSV file in UTF-8") from None
