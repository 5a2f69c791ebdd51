"""The writer of a platform's ledger: charge first, and only then release.

`charge` returns after the entry is on disk. So whatever ran was charged, and a crash at any moment
can only leave a charge whose mechanism never ran.

- A torn last line (no newline) is a charge that never returned: its mechanism never ran. `open`
  cuts it off.
- A failed write (disk full) is rolled back to the length before it; nothing earlier is touched.
- `record_release` writes what leaves, before it leaves. A charge without such a record may pay for another attempt; one with it
  may not: its answer left, or may have, and only that very answer may leave again.
- A crash between charge and release record leaves a charge that paid for nothing, which is sound and which an audit says. The
  other order cannot come about, and no reader takes it.
- Every line is signed by the platform's identity. A ledger that an earlier version began goes on, signed from there on.
- One process at a time: the open file is locked (`flock`), and the lock dies with its process.
- A ledger that is replaced, deleted or changed under the writer is noticed at the next charge.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from shared.base.atomic_files import sync_folder, sync_way
from shared.base.errors import BudgetExceeded, InputError, PrivacyError, StorageError, shell_word
from shared.base.file_lock import try_lock
from shared.base.synced_append import append_synced
from shared.ledger.format import (
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_LINE,
    VERSION,
    AnyLine,
    Entry,
    Header,
    IdentityRecord,
    Ledger,
    Line,
    ReleaseRecord,
    entry_of,
    now,
    seal_line,
    sign_line,
)
from shared.ledger.reading import OPEN_CHARGES, Signatures, parse_ledger
from shared.ledger.receipts import sign_head
from shared.privacy.accountants import PREFERRED, Accountant
from shared.privacy.releases import Release
from shared.privacy.spent import Method, Spent
from shared.secagg.identity import Identity

_ANOTHER = (
    "{} takes a platform that is made anew, with its own identity and ledger, and this ledger kept: for every user both add up "
    "(docs/operating.md, 'A budget that is nearly spent')"
)


class LedgerWriter:
    """An open, locked ledger to which charges are appended. Use as a context manager, or `close` it."""

    def __init__(
        self, *, path: Path, descriptor: int, ledger: Ledger, length: int, identity: Identity, accountant: Accountant
    ) -> None:
        """For `open`; call that."""
        self.path = path
        self._identity = identity
        self._descriptor = descriptor
        self._ledger = ledger
        self._length = length
        self._accountant = accountant
        self._serial = threading.Lock()
        self._records = {(line.charge, line.left): line.hash for line in ledger.lines if isinstance(line, ReleaseRecord)}
        self._released = {charge for charge, _ in self._records}
        self._released |= {line.hash for line in ledger.lines if isinstance(line, Entry) and not line.signature}

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        platform: str,
        budget: float,
        delta: float,
        identity: Identity,
        accountant: Accountant = PREFERRED,
    ) -> LedgerWriter:
        """The ledger at `path`, created (0600) or verified and continued.

        Args:
            path: The file; its folder is made if needed.
            platform: Name of the platform.
            budget: Epsilon, > 0; infinite when privacy is off.
            delta: In (0, 1).
            identity: The platform's key, which signs every line.
            accountant: Who computes epsilon.

        Raises:
            StorageError: another process holds it, it is not a ledger, or the disk refuses.
            PrivacyError: it was altered, or belongs to another platform, identity, budget or delta; or it would be new, and this
                identity has begun one beside it.
            InputError: a value is out of its range.
        """
        place = f"the ledger of platform {platform!r}"
        if not budget > 0:
            raise InputError(f"budget is {budget!r}", where=place, do="an epsilon above 0, or inf for no privacy")
        if not 0 < delta < 1:
            raise InputError(f"delta is {delta!r}", where=place, do="delta must be above 0 and below 1")
        key = b64encode(identity.public).decode("ascii")
        header = Header(platform=platform, budget=float(budget), delta=float(delta), created=now(), identity=key)
        header, line = _sealed(header, identity)
        try:
            parse_ledger(line, where=place)  # what could not be read back is not written
        except (StorageError, PrivacyError) as error:
            raise InputError(error.found, where=place, do="correct the platform file") from None
        if not path.exists() or not path.stat().st_size:
            _require_first(path, platform, key)
        descriptor = _locked(path)
        try:
            ledger, length = _continue(descriptor, path) or (None, 0)
            if ledger is None:
                _append(descriptor, line, length=0, path=path)
                ledger, length = Ledger(header=header), len(line)
            # At every opening, since whoever made the file, or a folder on the way, may have died before this: a charge in a
            # file whose name a power cut takes away would be lost with it.
            sync_folder(path.parent)
            sync_way(path.parent)
            _same(ledger.header, header, path)
            _require_identity(ledger, key, path)
            if not ledger.identity:
                record = IdentityRecord(seq=len(ledger.lines) + 1, time=now(), identity=key, previous=ledger.head)
                record, line = _sealed(record, identity)
                _append(descriptor, line, length=length, path=path)
                ledger, length = replace(ledger, lines=(*ledger.lines, record)), length + len(line)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path=path, descriptor=descriptor, ledger=ledger, length=length, identity=identity, accountant=accountant)

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
        """Whether an answer for the last charge has left, or may have, as one of a charge that an earlier version wrote."""
        entries = self._ledger.entries
        return bool(entries) and entries[-1].hash in self._released

    def charge_for(self, run: str, question: str) -> str:
        """Hash of the last charge for a question of a run; empty where none was made."""
        entries = reversed(self._ledger.entries)
        return next((entry.hash for entry in entries if (entry.run, entry.question) == (run, question)), "")

    def record_release(self, left: str, *, charge: str, run: str, round: int) -> str:
        """Write down what is about to leave, on disk before this returns. The same answer may leave again; it has one line.

        Args:
            left: SHA-256 of it, hex (`shared/ledger/release_digest.py`).
            charge: Hash of the charge that paid for it; empty where no row took part in it.
            run, round: Of the answer; the line of one that was charged names those of its charge.

        Returns:
            Hash of its line, which goes out with it.

        Raises:
            PrivacyError: another answer was released on that charge, or it is none of this ledger's open charges.
            StorageError: it could not be written, and the answer must not leave.
        """
        with self._serial:
            known = self._records.get((charge, left))
            if known is not None:
                return known
            if charge:
                paid = self._paying(charge)
                if paid is None or paid.run != run:
                    raise PrivacyError(
                        "an answer was about to leave that no open charge of this ledger pays for",
                        where=f"{self.path}, run {run}, round {round}",
                        do="leave this run; a new one is open to this platform",
                    )
                if not paid.signature:
                    return self.head  # an earlier version charged for it, without a line for what left
                round = paid.round
            self._check_file()
            record = ReleaseRecord(
                seq=len(self._ledger.lines) + 1, time=now(), run=run, round=round, charge=charge, left=left, previous=self.head
            )
            record, line = _sealed(record, self._identity)
            if not self._fits(line, more=0):
                raise StorageError("the ledger is too long", where=f"a release to {self.path}", do="start a new ledger")
            self._write(line, record)
            self._records[charge, left] = record.hash
            self._released.add(charge)
            return record.hash

    def holds(self, head: str) -> bool:
        """Whether a line of this ledger has that hash."""
        return any(line.hash == head for line in reversed(self._ledger.lines))

    def sign(self, head: str) -> str:
        """The platform's signature of a head of this ledger, base64."""
        return sign_head(self._identity, head)

    def _paying(self, charge: str) -> Entry | None:
        """The charge of that hash if it may still pay, as `LedgerReader` will see it."""
        still = 0
        for entry in reversed(self._ledger.entries):
            if entry.hash == charge:
                return entry if not entry.signature or charge not in self._released else None
            still += entry.hash not in self._released
            if still >= OPEN_CHARGES:
                return None
        return None

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
                    do=f"run fewer rounds: this platform can release no more of this kind. {_ANOTHER.format('A larger budget')}",
                )
            entry = entry_of(
                release,
                seq=len(self._ledger.lines) + 1,
                time=now(),
                run=run,
                round=round,
                epsilon=spent.epsilon,
                delta=header.delta,
                accountant=spent.accountant,
                previous=self.head,
                question=question,
            )
            entry, line = _sealed(entry, self._identity)
            self._check_entry(line, entry)
            self._write(line, entry)
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

    def _write(self, line: bytes, of: Line) -> None:
        try:
            _append(self._descriptor, line, length=self._length, path=self.path)
        except BaseException:
            # After a failed sync nobody knows what is on disk. Only a new `open`, which reads it, may go on.
            self.close()
            raise
        self._length += len(line)
        self._ledger = replace(self._ledger, lines=(*self._ledger.lines, of))

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
        key = b64encode(self._identity.public).decode("ascii")
        head = replace(self._ledger.header, version=VERSION, identity=key, signature="", hash="")
        head, first = _sealed(head, self._identity)
        _, second = _sealed(replace(entry, seq=1, previous=head.hash, signature="", hash=""), self._identity)
        try:
            parse_ledger(first + second, where=str(self.path))
        except (StorageError, PrivacyError) as error:
            raise InputError(error.found, where=f"a charge to {self.path}", do="run names are like 'spring-2'") from None
        # A charge whose release record does not fit any more would pay for nothing.
        if not self._fits(line, more=1):
            raise InputError("the entry or the ledger is too long", where=f"a charge to {self.path}", do="start a new ledger")

    def _fits(self, line: bytes, *, more: int) -> bool:
        """Whether the ledger can still be read with this line, and with `more` lines of the greatest length after it."""
        length = self._length + len(line) + more * MAX_LINE
        return len(line) <= MAX_LINE and len(self._ledger.lines) + 1 + more <= MAX_ENTRIES and length <= MAX_BYTES


def _sealed(line: AnyLine, identity: Identity) -> tuple[AnyLine, bytes]:
    """The line with signature and hash, and the bytes to write."""
    signed = sign_line(line, identity)
    digest, text = seal_line(signed)
    return replace(signed, hash=digest), text


def _locked(path: Path) -> int:
    """A descriptor of the file at `path`, made if needed, exclusively locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise _refused(path, error, "the ledger cannot be opened") from None
    try:
        if not try_lock(descriptor):
            raise StorageError(
                "another process holds this ledger",
                where=str(path),
                do="stop the other client of this platform; one ledger has one writer",
            )
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise StorageError("this is not a file", where=str(path), do="name a file for the ledger")
        if state.st_mode & 0o022:
            raise StorageError(
                f"others may write this ledger (mode {stat.S_IMODE(state.st_mode):04o})",
                where=str(path),
                do=f"chmod go-w {shell_word(path)}, and check it against the coordinator's receipts",
            )
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
            f"the last {len(torn)} bytes are not a ledger line", where=str(path), do="put the newest copy that is whole back"
        )
    # Everything before the tear, before cutting. The last signature covers all.
    ledger = parse_ledger(content[:whole], where=str(path), signatures=Signatures.LAST) if whole else None
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
        append_synced(descriptor, line, length=length)
    except OSError as error:
        raise _refused(path, error, "the charge could not be written, so nothing may be released") from None


def _same(found: Header, wanted: Header, path: Path) -> None:
    for name in ("platform", "budget", "delta"):
        have, want = getattr(found, name), getattr(wanted, name)
        if have != want:
            raise PrivacyError(
                f"this ledger was begun with {name} {have}, and is now opened with {want}",
                where=str(path),
                do=f"set {name} back to {have}. {_ANOTHER.format(f'Another {name}')}",
            )


def _require_first(path: Path, platform: str, key: str) -> None:
    """No second ledger is begun under one identity: it would allow the whole budget once more, and no audit holds it sound."""
    for other in sorted(path.parent.glob("*.jsonl")):
        if other == path:
            continue
        try:
            with other.open("rb") as file:
                header = parse_ledger(file.readline(MAX_LINE), where=str(other)).header
        except (OSError, StorageError, PrivacyError):
            continue  # no ledger
        if header.platform == platform and header.identity in ("", key):
            raise PrivacyError(
                f"this platform has begun a ledger already, {other.name}, and has one under one identity",
                where=str(path),
                do=f"move it back to {path.name}. {_ANOTHER.format('A second ledger')}",
            )


def _require_identity(ledger: Ledger, key: str, path: Path) -> None:
    if ledger.identity not in ("", key):
        raise PrivacyError(
            f"this ledger belongs to the identity {ledger.identity[:12]}..., and is opened by {key[:12]}...",
            where=str(path),
            do=f"put this platform's identity.key back. {_ANOTHER.format('Another identity')}",
        )


def _refused(path: Path, error: OSError, what: str) -> StorageError:
    reason = error.strerror or type(error).__name__
    return StorageError(f"{what} ({reason})", where=str(path), do="free space or mend the permissions, then start again")
