"""Copies of ledgers: one is made while its platform may be writing, and one that is given beside its ledger is found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shared.base.atomic_files import whole_file
from shared.base.errors import InputError, PrivacyError, StorageError
from shared.ledger.format import MAX_BYTES, MAX_LINE
from shared.ledger.reading import LedgerReader, Signatures, UnreadableLedger, scan_ledger

_PART = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LedgerCopy:
    """What was copied.

    Args:
        lines: After the header.
        head: Hash of the last of them.
    """

    platform: str
    lines: int
    head: str


def copy_ledger(ledger: Path, out: Path) -> LedgerCopy:
    """Copy the whole lines that are there now, verified on the way, to a new file of mode 0600. A line at a time is in memory.

    Raises:
        InputError: there is something at `out`.
        StorageError: the ledger cannot be read, or the copy not be written.
        PrivacyError: it was altered, or a line of it is none.
    """
    if os.path.lexists(out):
        raise InputError("the file is there already", where=str(out), do="name a new one")
    reader = LedgerReader(where=str(ledger), signatures=Signatures.LAST)
    try:
        source = ledger.open("rb")
    except OSError as error:
        raise StorageError(f"the ledger cannot be read ({error.strerror})", where=str(ledger)) from None
    with source, whole_file(out, mode=0o600) as draft, draft.open("wb") as copy:
        try:
            for _ in scan_ledger(_Whole(source, copy), reader, where=str(ledger)):
                pass
        except UnreadableLedger:
            raise
        except StorageError as error:  # a damaged line; what the copy's disk refuses is an OSError here
            raise PrivacyError(error.found, where=error.where, do=error.do) from None
    assert reader.header is not None
    return LedgerCopy(platform=reader.header.platform, lines=reader.lines, head=reader.head)


def without_copies(ledgers: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Those of some ledgers that are not the beginning of another, or all, of them, and what was left out, in words.

    Lines are canonical and only ever added, so that an older copy of a ledger is, byte by byte, its beginning. Audited beside it,
    it would look like a second ledger of that identity. One that differs in a byte stays.
    """
    each = list(dict.fromkeys(ledgers))
    begun = {path: _beginning(path) for path in each}
    kept, notes = list[Path](), list[str]()
    for number, path in enumerate(each):
        size, first = begun[path]
        # Of two that are the same, the first is kept.
        longer = [other for other in each[number + 1 :] if begun[other][0] > size]
        among = [other for other in (*kept, *longer) if first and begun[other][1] == first and begun[other][0] >= size]
        whole = next((other for other in among if _same(path, other, size)), None)
        if whole is None:
            kept.append(path)
        else:
            notes.append(f"{path} is a copy of {whole}, or of its beginning: not counted again")
    return kept, notes


def _beginning(path: Path) -> tuple[int, bytes]:
    """Size and first line; (0, nothing) of what is no file, too large, or cannot be read: the audit says which."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return 0, b""
        with path.open("rb") as file:
            return path.stat().st_size, file.readline(MAX_LINE + 1)
    except OSError:
        return 0, b""


def _same(path: Path, whole: Path, size: int) -> bool:
    """Whether both begin with the same `size` bytes."""
    try:
        with path.open("rb") as one, whole.open("rb") as other:
            return all(one.read(part) == other.read(part) for at in range(0, size, _PART) for part in [min(_PART, size - at)])
    except OSError:
        return False


class _Whole:
    """Lines as they are read, each written to the copy; a last one that is being written is not there yet."""

    def __init__(self, source: IO[bytes], copy: IO[bytes]) -> None:
        self._source, self._copy = source, copy

    def readline(self, limit: int, /) -> bytes:
        line = self._source.readline(limit)
        if not line.endswith(b"\n") and len(line) < limit:
            return b""
        self._copy.write(line)
        return line
