"""A copy of a ledger for an auditor, made while its platform may be writing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shared.base.atomic_files import whole_file
from shared.base.errors import InputError, StorageError
from shared.ledger.reading import LedgerReader, Signatures, scan_ledger


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
        PrivacyError: it was altered.
    """
    if os.path.lexists(out):
        raise InputError("is there already", where=str(out), do="name a new file")
    reader = LedgerReader(where=str(ledger), signatures=Signatures.LAST)
    try:
        source = ledger.open("rb")
    except OSError as error:
        raise StorageError(f"the ledger cannot be read ({error.strerror})", where=str(ledger)) from None
    with source, whole_file(out, mode=0o600) as draft, draft.open("wb") as copy:
        for _ in scan_ledger(_Whole(source, copy), reader, where=str(ledger)):
            pass
    assert reader.header is not None
    return LedgerCopy(platform=reader.header.platform, lines=reader.lines, head=reader.head)


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
