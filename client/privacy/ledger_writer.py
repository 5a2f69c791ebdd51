"""The writer of a platform's ledger: charge first, and only then release.

`charge` returns after the entry is on disk. So whatever ran was charged, and a crash at any moment
can only leave a charge whose mechanism never ran.

- A torn last line (no newline) is a charge that never returned: its mechanism never ran. `open`
  cuts it off.
- A failed write (disk full) is rolled back to the length before it; nothing earlier is touched.
- A file next to the ledger (`.left`) lists the charges whose answers left; it is written before they do. It tells a charge that a
  crash cut off, which may pay for another attempt, from one whose answer an older copy of a run's state does not know.
- One process at a time: the open file is locked (`flock`), and the lock dies with its process.
- A ledger that is replaced, deleted or changed under the writer is noticed at the next charge.
"""

from __future__ import annotations

import fcntl
import math
import os
import stat
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from shared.base.atomic_files import sync_folder, sync_way, write_whole
from shared.base.errors import BudgetExceeded, InputError, PrivacyError, StorageError
from shared.ledger.format import MAX_BYTES, MAX_ENTRIES, MAX_LINE, Entry, Header, Ledger, entry_of, now, parse_ledger, seal_line
from shared.privacy.accountants import PREFERRED, Accountant
from shared.privacy.releases import Release
from shared.privacy.spent import Method, Spent


class LedgerWriter:
    """An open, locked ledger to which charges are appended. Use as a context manager, or `close` it."""

    def __init__(self, *, path: Path, descriptor: int, ledger: Ledger, length: int, accountant: Accountant) -> None:
        """For `open`; call that."""
        self.path = path
        self._descriptor = descriptor
        self._ledger = ledger
        self._length = length
        self._accountant = accountant
        self._serial = threading.Lock()
        self._noted = ""

    @classmethod
    def open(cls, path: Path, *, platform: str, budget: float, delta: float, accountant: Accountant = PREFERRED) -> LedgerWriter:
        """The ledger at `path`, created (0600) or verified and continued.

        Args:
            path: The file; its folder is made if needed.
            platform: Name of the platform.
            budget: Epsilon, > 0; infinite when privacy is off.
            delta: In (0, 1).
            accountant: Who computes epsilon.

        Raises:
            StorageError: another process holds it, it is not a ledger, or the disk refuses.
            PrivacyError: it was altered, or belongs to another platform, budget or delta.
            InputError: a value is out of its range.
        """
        place = f"the ledger of platform {platform!r}"
        if not budget > 0:
            raise InputError(f"budget is {budget!r}", where=place, do="an epsilon above 0, or inf for no privacy")
        if not 0 < delta < 1:
            raise InputError(f"delta is {delta!r}", where=place, do="delta must be above 0 and below 1")
        header = Header(platform=platform, budget=float(budget), delta=float(delta), created=now())
        digest, line = seal_line(header)
        header = replace(header, hash=digest)
        try:
            parse_ledger(line, where=place)  # what could not be read back is not written
        except (StorageError, PrivacyError) as error:
            raise InputError(error.found, where=place, do="correct the platform file") from None
        descriptor = _locked(path)
        try:
            ledger, length = _continue(descriptor, path) or (None, 0)
            if ledger is None:
                _append(descriptor, line, length=0, path=path)
                ledger, length = Ledger(header=header), len(line)
                write_whole(path.with_suffix(".left"), b"", mode=0o600)
            # At every opening, since whoever made the file, or a folder on the way, may have died before this: a charge in a
            # file whose name a power cut takes away would be lost with it.
            sync_folder(path.parent)
            sync_way(path.parent)
            _same(ledger.header, header, path)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path=path, descriptor=descriptor, ledger=ledger, length=length, accountant=accountant)

    @property
    def ledger(self) -> Ledger:
        """Everything charged so far."""
        return self._ledger

    @property
    def epsilon(self) -> float:
        """Spent so far, in nats."""
        return self._ledger.epsilon

    @property
    def head(self) -> str:
        """Hash of the last line: the receipt that goes out with every answer."""
        return self._ledger.head

    @property
    def left(self) -> bool:
        """Whether an answer for the last charge has left, or may have: a ledger without its list is taken to have said all."""
        try:
            return self.head in self._left_path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return bool(self._ledger.entries)
        except (OSError, ValueError) as error:
            raise StorageError(f"the list of answers that left cannot be read ({error})", where=str(self._left_path)) from None

    def leave(self) -> None:
        """Note that an answer for the last charge is about to leave; on disk before this returns.

        Raises:
            StorageError: it could not be written, and the answer must not leave.
        """
        if not self._ledger.entries or self._noted == self.head:
            return
        try:
            # The last one alone counts: an earlier charge pays for nothing again.
            write_whole(self._left_path, f"{self.head}\n".encode("ascii"), mode=0o600)
        except OSError as error:
            raise _refused(self._left_path, error, "that an answer leaves could not be written") from None
        self._noted = self.head

    @property
    def _left_path(self) -> Path:
        return self.path.with_suffix(".left")

    def preview(self, release: Release) -> Spent:
        """What would have been spent after `release`; charges nothing."""
        if not self._ledger.private:
            return Spent(epsilon=math.inf, accountant=Method.NONE)
        return self._accountant.epsilon([*self._ledger.releases, release], self._ledger.header.delta)

    def charge(self, release: Release, *, run: str, round: int, question: str) -> Entry:
        """Charge for `release`, on disk before this returns. Call it BEFORE the mechanism runs.

        Args:
            question: SHA-256 of what was asked, hex (`client/privacy/charged_question.py`).

        Raises:
            BudgetExceeded: the budget does not allow it; nothing was written.
            StorageError: it could not be written, or the file changed meanwhile; nothing was
                charged and the mechanism must not run.
        """
        with self._serial:
            self._check_file()
            spent = self.preview(release)
            header = self._ledger.header
            # Written so that a NaN, should an accountant ever give one, is refused as well.
            if not spent.epsilon <= header.budget:
                raise BudgetExceeded(
                    f"{release.kind} would bring epsilon to {spent.epsilon:.4g}, above the budget of {header.budget:g} "
                    f"({self.epsilon:.4g} is spent, delta {header.delta:g})",
                    where=f"{self.path}, run {run}, round {round}",
                    do="this platform can release nothing more of this kind: run fewer rounds, or raise its budget and "
                    "start a new ledger, knowing that both ledgers then add up",
                )
            entry = entry_of(
                release,
                seq=len(self._ledger.entries) + 1,
                time=now(),
                run=run,
                round=round,
                epsilon=spent.epsilon,
                delta=header.delta,
                accountant=spent.accountant,
                previous=self.head,
                question=question,
            )
            digest, line = seal_line(entry)
            entry = replace(entry, hash=digest)
            self._check_entry(line, entry)
            try:
                _append(self._descriptor, line, length=self._length, path=self.path)
            except BaseException:
                # After a failed sync nobody knows what is on disk. Only a new `open`, which reads it, may go on.
                self.close()
                raise
            self._length += len(line)
            self._ledger = replace(self._ledger, entries=(*self._ledger.entries, entry))
            return entry

    def close(self) -> None:
        """Release the lock. Harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_file(self) -> None:
        if self._descriptor < 0:
            raise StorageError("the ledger is closed", where=str(self.path), do="open it again")
        held = os.fstat(self._descriptor)
        try:
            named = self.path.stat()
        except OSError as error:
            raise _refused(self.path, error, "the ledger is gone") from None
        # A charge to a file that nobody will find again would be no charge.
        if (named.st_dev, named.st_ino) != (held.st_dev, held.st_ino) or held.st_size != self._length:
            raise StorageError(
                "the ledger was changed or replaced by something else while it was open",
                where=str(self.path),
                do="find out what wrote to it, restore it, and start the client again",
            )

    def _check_entry(self, line: bytes, entry: Entry) -> None:
        # The reader's own rules, on a chain of two lines: what could not be read back is not written.
        head = replace(self._ledger.header, hash="")
        digest, first = seal_line(head)
        _, second = seal_line(replace(entry, seq=1, previous=digest, hash=""))
        try:
            parse_ledger(first + second, where=str(self.path))
        except (StorageError, PrivacyError) as error:
            raise InputError(error.found, where=f"a charge to {self.path}", do="run names are like 'spring-2'") from None
        if len(line) > MAX_LINE or entry.seq > MAX_ENTRIES or self._length + len(line) > MAX_BYTES:
            raise InputError("the entry or the ledger is too long", where=f"a charge to {self.path}", do="start a new ledger")


def _locked(path: Path) -> int:
    """A descriptor of the file at `path`, made if needed, exclusively locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise _refused(path, error, "the ledger cannot be opened") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise StorageError("this is not a file", where=str(path), do="name a file for the ledger")
        if state.st_mode & 0o022:
            raise StorageError(
                f"others may write this ledger (mode {stat.S_IMODE(state.st_mode):04o})",
                where=str(path),
                do=f"chmod go-w {path}, and check it against the coordinator's receipts",
            )
    except BlockingIOError:
        os.close(descriptor)
        raise StorageError(
            "another process holds this ledger",
            where=str(path),
            do="stop the other client of this platform; one ledger has one writer",
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _continue(descriptor: int, path: Path) -> tuple[Ledger, int] | None:
    """What the file holds, a torn last line cut off; None if it is new."""
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise _refused(path, error, "the ledger cannot be read") from None
    whole = content.rfind(b"\n") + 1
    torn = content[whole:]
    if whole == 0 and not _could_begin(torn):
        # Nothing proves that this is a ledger, so nothing is cut from it.
        raise StorageError("this file is not a ledger", where=str(path), do="name another file for the ledger")
    if len(torn) >= MAX_LINE:
        raise StorageError(
            f"the last {len(torn)} bytes are not a ledger line", where=str(path), do="restore the ledger from a backup"
        )
    ledger = parse_ledger(content[:whole], where=str(path)) if whole else None  # everything before the tear, before cutting
    if torn:
        try:
            os.ftruncate(descriptor, whole)
            os.fsync(descriptor)
        except OSError as error:
            raise _refused(path, error, "the torn last line of the ledger cannot be cut off") from None
    return (ledger, whole) if ledger else None


def _could_begin(torn: bytes) -> bool:
    # Keys are sorted, so every header begins with its budget. A crash may also leave zeros of the right length.
    start = b'{"budget":'
    return torn[: len(start)] == start[: len(torn)] or not torn.strip(b"\0")


def _append(descriptor: int, line: bytes, *, length: int, path: Path) -> None:
    """Append `line` and sync, or leave the file as long as it was."""
    try:
        written = 0
        while written < len(line):  # a short write is legal; the next one says why
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except BaseException as error:
        with suppress(OSError):  # if even this fails, the torn line is cut off at the next opening
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        if isinstance(error, OSError):
            raise _refused(path, error, "the charge could not be written, so nothing may be released") from None
        raise


def _same(found: Header, wanted: Header, path: Path) -> None:
    for name in ("platform", "budget", "delta"):
        have, want = getattr(found, name), getattr(wanted, name)
        if have != want:
            raise PrivacyError(
                f"this ledger was begun with {name} {have}, and is now opened with {want}",
                where=str(path),
                do=f"set {name} back to {have}; or, to go on with {want}, keep this ledger and start a new one in another "
                "file: what both have spent then adds up for every user",
            )


def _refused(path: Path, error: OSError, what: str) -> StorageError:
    reason = error.strerror or type(error).__name__
    return StorageError(f"{what} ({reason})", where=str(path), do="free space or mend the permissions, then start again")
