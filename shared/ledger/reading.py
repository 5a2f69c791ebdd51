"""Reading a ledger: every line is checked before anything is believed of it, in constant memory.

A ledger is data from another party. Nothing but canonical JSON with a true hash, in an unbroken chain, is a line; the reader
holds one line at a time, and the charges that no release record names yet, up to `OPEN_CHARGES`.

**Signatures.** A line's hash covers its signature, and the next line names the hash. So one valid signature covers every line
before it, and the last line's is always verified. `Signatures.EVERY` verifies all others too (some 0.1 ms each).
"""

from __future__ import annotations

import math
import re
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from shared.base.errors import FedfuseError, InputError, StorageError
from shared.ledger.chained_line import GENESIS, AlteredLine, UnreadableLine, open_line
from shared.ledger.field_checks import damaged, hold, matching, moment, number, whole_number
from shared.ledger.format import (
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_LINE,
    MAX_ROUND,
    READABLE,
    SIGNED,
    UNIT,
    Entry,
    Header,
    IdentityRecord,
    IntegerEntry,
    Ledger,
    Line,
    ReleaseRecord,
    signed_digest,
)
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method
from shared.protocol.messages import NAME
from shared.secagg.identity import PUBLIC, SIGNATURE, signed_by

OPEN_CHARGES = 1024
"""Charges without a release record of which one may still come; older ones have none for good."""

_HASH = re.compile(r"[0-9a-f]{64}")
_MAYBE_HASH = re.compile(r"[0-9a-f]{64}|")
_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")

_SIGNED_FIELD = frozenset({"signature"})
_FIELDS = {
    kind: frozenset(part.name for part in fields(kind)) for kind in (Header, Entry, IntegerEntry, ReleaseRecord, IdentityRecord)
}


class UnreadableLedger(StorageError):
    """What this program cannot judge: another version, the middle of a line, no ledger at all."""


class Signatures(Enum):
    """Which are verified."""

    LAST = "last"
    EVERY = "every"


class LedgerReader:
    """Verifies the lines of one ledger, in order.

    Args:
        where: The ledger, for a person.
    """

    def __init__(self, *, where: str, signatures: Signatures = Signatures.EVERY) -> None:
        self._where, self._signatures = where, signatures
        self.header: Header | None = None
        self.identity = b""
        """The key that signs the lines from here on, 32 bytes; empty where none does."""
        self.head, self.lines, self.epsilon = "", 0, 0.0
        self._open: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._unverified: tuple[bytes, str, str] | None = None

    @property
    def open_charges(self) -> tuple[str, ...]:
        """Hashes of charges that a release record may still name."""
        return tuple(self._open)

    def begin(self, text: bytes) -> Header:
        """Take line 1, without its newline.

        Raises:
            UnreadableLedger: it is no header, so this is no ledger, or one of a later version.
            PrivacyError: it was altered.
        """
        place = f"{self._where}, line 1"
        try:
            values, body = _table(text, place)
        except StorageError:  # a foreign file is nobody's fault, and so no fault of a platform's records
            values = {}
        if "version" not in values:
            raise UnreadableLedger("this is not a ledger: its first line is no header", where=place, do="name a ledger")
        header = _header(values, where=place)
        if header.version >= SIGNED:
            self.identity = b64decode(header.identity)
            self._signed(body, header.signature, place)
        self.header, self.head = header, header.hash
        return header

    def take(self, text: bytes) -> Line:
        """The next line, without its newline, verified.

        Raises:
            UnreadableLedger: it is of a later version, or there are too many.
            StorageError: it is no ledger line.
            PrivacyError: it was altered: the chain, the order, a signature, the budget or the delta does not hold.
        """
        header = self.header
        assert header is not None
        nth = self.lines + 1
        place = f"{self._where}, line {nth + 1}"
        if nth > MAX_ENTRIES:
            raise UnreadableLedger(f"the ledger has more than {MAX_ENTRIES} lines", where=place, do="start a new ledger")
        values, body = _table(text, place)
        line = _line(values, where=place)
        hold(line.seq == nth, f"line {line.seq} is where line {nth} belongs", place)
        hold(line.previous == self.head, "the chain is broken: this line does not follow the one before it", place)
        if isinstance(line, IdentityRecord):
            hold(not self.identity, "a second identity: a ledger belongs to one", place)
            self.identity = b64decode(line.identity)
        elif isinstance(line, ReleaseRecord):
            hold(bool(self.identity), "a release record in a part of the ledger that nobody signs", place)
            if line.charge:
                charged = self._open.pop(line.charge, None)
                hold(charged is not None, "what left was not charged: no open charge has that hash", place)
                hold(charged == (line.run, line.round), "what left is of another run or round than its charge", place)
        else:
            self._charged(line, header, place)
        hold(bool(line.signature) == bool(self.identity), "a line that is not signed as those before it", place)
        if self.identity:
            self._signed(body, line.signature, place)
        self.head, self.lines = line.hash, nth
        return line

    def finish(self) -> None:
        """Verify the last line's signature, which covers all lines.

        Raises:
            PrivacyError: the platform's key did not sign it.
        """
        if self._unverified is not None:
            body, signature, place = self._unverified
            hold(_verifies(self.identity, signature, body), "the line is not signed by the ledger's platform", place)
            self._unverified = None

    def _charged(self, entry: Entry, header: Header, place: str) -> None:
        hold(entry.delta == header.delta, f"delta is {entry.delta}, the ledger's is {header.delta}", place)
        hold(entry.epsilon <= header.budget, f"epsilon {entry.epsilon} is above the budget of {header.budget}", place)
        # Without a promise there is no figure: a finite one would look like a guarantee.
        hold(math.isfinite(header.budget) or math.isinf(entry.epsilon), "a finite epsilon although privacy is off", place)
        self.epsilon = entry.epsilon
        self._open[entry.hash] = (entry.run, entry.round)
        if len(self._open) > OPEN_CHARGES:
            self._open.popitem(last=False)

    def _signed(self, body: bytes, signature: str, place: str) -> None:
        self._unverified = body, signature, place
        if self._signatures is Signatures.EVERY:
            self.finish()


class LineSource(Protocol):
    """Whatever gives lines, as a file that is open for reading in bytes does."""

    def readline(self, limit: int, /) -> bytes:
        """The next line with its newline, at most so many bytes of it; nothing at the end."""
        ...


def scan_ledger(file: LineSource, reader: LedgerReader, *, where: str) -> Iterator[Line]:
    """Every line after the header, as it is verified; the header is in `reader` before the first.

    Raises:
        UnreadableLedger, StorageError, PrivacyError: as `LedgerReader`; also if the file ends in the middle of a line.
    """
    nth = read = 0
    while True:
        text = file.readline(MAX_LINE + 1)
        nth, read = nth + 1, read + len(text)
        place = f"{where}, line {nth}"
        if read > MAX_BYTES:
            raise UnreadableLedger(f"the ledger has more than {MAX_BYTES} bytes", where=place, do="start a new ledger")
        if not text and nth > 1:
            break
        if not text.endswith(b"\n"):
            if len(text) > MAX_LINE:
                _refuse_long(len(text), place, first=nth == 1)
            raise UnreadableLedger(
                "the ledger ends in the middle of a line" if text else "the ledger is empty",
                where=place,
                do="a crash while charging can do this: the platform cuts the torn line off when it next opens the ledger",
            )
        if nth == 1:
            reader.begin(text[:-1])
        else:
            yield reader.take(text[:-1])
    reader.finish()


def read_ledger(path: Path, *, signatures: Signatures = Signatures.EVERY) -> Ledger:
    """The ledger at `path`, verified whole, all of it in memory.

    Returns:
        Header and lines; `epsilon` in nats at the header's delta, as the last charge says; `releases`, from which anybody
        computes it anew.

    Raises:
        StorageError: it cannot be read, or is not a ledger, or ends in the middle of a line.
        PrivacyError: it was altered: the chain, a signature, the order, the budget or the delta does not hold.

    | given | result |
    |---|---|
    | no such file, an empty one, or something else | `StorageError` |
    | a header alone | no line, epsilon 0 |
    | a last line without its end | `StorageError` |
    | a changed, dropped, repeated or moved line | `PrivacyError` |
    | a last line that was cut off whole | read: only evidence from outside shows it |
    """
    try:
        with path.open("rb") as file:
            return _whole(file, where=str(path), signatures=signatures)
    except OSError as error:
        raise StorageError(f"the ledger cannot be read ({error.strerror})", where=str(path)) from None


def parse_ledger(content: bytes, *, where: str, signatures: Signatures = Signatures.EVERY) -> Ledger:
    """The ledger in `content`; errors as `read_ledger`."""
    return _whole(BytesIO(content), where=where, signatures=signatures)


def _whole(file: IO[bytes], *, where: str, signatures: Signatures) -> Ledger:
    reader = LedgerReader(where=where, signatures=signatures)
    lines = tuple(scan_ledger(file, reader, where=where))
    assert reader.header is not None
    return Ledger(header=reader.header, lines=lines)


def _refuse_long(length: int, place: str, *, first: bool) -> NoReturn:
    kind = UnreadableLedger if first else StorageError
    raise kind(f"a line of {length} bytes", where=place, do="this is not a ledger, or it is damaged")


def _table(line: bytes, where: str) -> tuple[dict[str, Any], bytes]:
    """The line's values, its hash checked, and what is signed: nothing but canonical JSON with a true hash gets through."""
    if len(line) >= MAX_LINE:
        _refuse_long(len(line), where, first=False)
    try:
        return open_line(line)
    except AlteredLine as error:
        hold(False, str(error), where)
        raise
    except UnreadableLine as error:
        damaged(str(error), where)


def _line(values: dict[str, Any], *, where: str) -> Line:
    if "left" in values:
        return _release_record(values, where=where)
    if "identity" in values:
        _require_fields(values, _FIELDS[IdentityRecord], where)
        return IdentityRecord(
            seq=whole_number(values, "seq", where, at_most=MAX_ENTRIES),
            time=_time(values, where),
            identity=_key(values, where),
            previous=matching(values, "previous", _HASH, where),
            signature=values.get("signature", ""),
            hash=values["hash"],
        )
    return _entry(values, where=where)


def _require_fields(values: dict[str, Any], expected: frozenset[str], where: str) -> None:
    found = values.keys() | _SIGNED_FIELD
    if found != expected:
        damaged(f"fields differ from a ledger's by {sorted(found ^ expected)!r:.200}", where)


def _header(values: dict[str, Any], *, where: str) -> Header:
    if values["version"] not in READABLE or isinstance(values["version"], bool):
        raise UnreadableLedger(
            f"ledger version {values['version']!r:.40}",
            where=where,
            do=f"this program reads versions {READABLE[0]} to {READABLE[-1]}: update it",
        )
    signed = values["version"] >= SIGNED
    _require_fields(values, _FIELDS[Header] - (frozenset() if signed else {"identity"}), where)
    hold(("signature" in values) == signed, "the header is not signed as its version says", where)
    header = Header(
        version=values["version"],
        platform=matching(values, "platform", NAME, where),
        budget=number(values, "budget", where, infinite=True),
        delta=number(values, "delta", where),
        unit=UNIT,
        created=_time(values, where, "created"),
        seq=whole_number(values, "seq", where, at_most=0),
        previous=matching(values, "previous", _HASH, where),
        identity=_key(values, where) if signed else "",
        signature=values.get("signature", ""),
        hash=values["hash"],
    )
    hold(values["unit"] == UNIT, f"the unit of privacy is not {UNIT!r}", where)
    hold(header.previous == GENESIS, "the first line names a line before it: the beginning was cut off", where)
    hold(header.budget > 0, f"the budget is {header.budget}", where)
    hold(0 < header.delta < 1, f"delta is {header.delta}", where)
    return header


def _release_record(values: dict[str, Any], *, where: str) -> ReleaseRecord:
    _require_fields(values, _FIELDS[ReleaseRecord], where)
    return ReleaseRecord(
        seq=whole_number(values, "seq", where, at_most=MAX_ENTRIES),
        time=_time(values, where),
        run=matching(values, "run", NAME, where),
        round=whole_number(values, "round", where, at_most=MAX_ROUND),
        charge=matching(values, "charge", _MAYBE_HASH, where),
        left=matching(values, "left", _HASH, where),
        previous=matching(values, "previous", _HASH, where),
        signature=values.get("signature", ""),
        hash=values["hash"],
    )


def _entry(values: dict[str, Any], *, where: str) -> Entry:
    kind_of_line = IntegerEntry if "integers" in values else Entry
    expected = _FIELDS[kind_of_line]
    _require_fields(values, expected if "question" in values else expected - {"question"}, where)
    try:
        kind, method = ReleaseKind(values["kind"]), Method(values["accountant"])
    except (ValueError, TypeError):
        found = f"kind {values['kind']!r:.60} or accountant {values['accountant']!r:.60}"
        raise UnreadableLedger(f"{found} is unknown to this version", where=where, do="update this program") from None
    optional: dict[str, Any] = {}
    if "integers" in values:
        optional["integers"] = _integers(values["integers"], where)
    if "question" in values:
        optional["question"] = matching(values, "question", _HASH, where)
    entry = kind_of_line(
        **optional,
        seq=whole_number(values, "seq", where, at_most=MAX_ENTRIES),
        time=_time(values, where),
        run=matching(values, "run", NAME, where),
        round=whole_number(values, "round", where, at_most=MAX_ROUND),
        kind=kind,
        noise_multiplier=number(values, "noise_multiplier", where),
        sample_rate=number(values, "sample_rate", where),
        steps=whole_number(values, "steps", where),
        group_size=whole_number(values, "group_size", where),
        epsilon=number(values, "epsilon", where, infinite=True),
        delta=number(values, "delta", where),
        accountant=method,
        previous=matching(values, "previous", _HASH, where),
        signature=values.get("signature", ""),
        hash=values["hash"],
    )
    try:
        # Checks every range, of the integers too.
        _release(kind, entry.noise_multiplier, entry.sample_rate, entry.steps, entry.group_size, optional.get("integers"))
    except FedfuseError as error:
        damaged(error.found, where)
    return entry


@lru_cache(maxsize=256)
def _release(kind: ReleaseKind, noise: float, rate: float, steps: int, group: int, integers: Integers | None) -> Release:
    return Release(kind=kind, noise_multiplier=noise, sample_rate=rate, steps=steps, group_size=group, integers=integers)


def _integers(values: Any, where: str) -> Integers:
    if not isinstance(values, dict) or set(values) | {"local"} != {part.name for part in fields(Integers)}:
        damaged(f"integers is {values!r:.100}", where)
    try:
        return Integers(
            reach=number(values, "reach", where),
            dimension=whole_number(values, "dimension", where),
            failure=number(values, "failure", where),
            honest=whole_number(values, "honest", where),
            **({"local": whole_number(values, "local", where)} if "local" in values else {}),
        )
    except InputError as error:
        damaged(error.found, where)


def _time(values: dict[str, Any], where: str, name: str = "time") -> str:
    value = values[name]
    if not isinstance(value, str) or not _moment(value):
        return moment(values, name, where)  # says what is wrong with it
    return value


@lru_cache(maxsize=64)
def _moment(value: str) -> bool:
    try:
        return moment({"time": value}, "time", "") == value
    except StorageError:
        return False


def _key(values: dict[str, Any], where: str) -> str:
    return matching(values, "identity", _KEY, where)


def _verifies(identity: bytes, signature: str, body: bytes) -> bool:
    raw = b64decode(signature)
    return len(identity) == PUBLIC and len(raw) == SIGNATURE and signed_by(identity, raw, signed_digest(body))
