"""The ledger's format, and how anyone reads and verifies one.

A ledger is a text file of canonical JSON lines that only grows. Line 1 is the header; every later
line is one charge, written before the mechanism it pays for ran. Each line carries the SHA-256 of
itself (canonical JSON without `hash`) and of the line before, so a change, a removal or a
reordering anywhere but at the end breaks the chain. A cut end does not: whoever holds a later
*head* (the last line's hash; the coordinator records it with every answer) sees that it is missing.

The chain has no key. It shows tampering to those who hold a head; it does not stop an operator
from writing another ledger from the start.

A ledger is data from another party: everything is checked before it is used, and the reader holds
no more than `MAX_ENTRIES` lines of `MAX_LINE` bytes, and of `MAX_BYTES` together.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from shared.base.errors import FedfuseError, InputError, StorageError
from shared.ledger.field_checks import TIME, damaged, hold, matching, moment, number, whole_number
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method
from shared.protocol.messages import NAME

VERSION = 2
READABLE = (1, 2)
"""Version 1 had floating-point noise, and charges that did not name their question."""
UNIT = "one user of one platform, add or remove"
GENESIS = "0" * 64
"""What the header names as the hash of the line before it."""

MAX_LINE = 2048
MAX_ENTRIES = 100_000
MAX_BYTES = 1 << 26
MAX_ROUND = 1 << 53

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """Line 1: whose ledger it is and what it may spend. Constant for the life of the ledger."""

    version: int = VERSION
    platform: str
    budget: float
    delta: float
    unit: str = UNIT
    created: str
    seq: int = 0
    previous: str = GENESIS
    hash: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One charge.

    Args:
        seq: 1, 2, 3...
        time: UTC, ISO 8601, whole seconds. Informative: clocks may step back.
        run: Name of the run.
        round: Round of the run; 0 before the first.
        kind, noise_multiplier, sample_rate, steps, group_size: The `Release` (its docstring has the units).
        epsilon: Spent by all entries up to and with this one; infinite when privacy is off.
        delta: At which epsilon holds; the header's.
        accountant: The method that computed epsilon.
        previous: Hash of the line before.
        question: SHA-256 of what was asked (`client/privacy/charged_question.py`), hex: another question is another charge.
            Empty in a line that version 1 wrote.
        hash: SHA-256 of this line's canonical JSON without `hash`, hex.
    """

    seq: int
    time: str
    run: str
    round: int
    kind: ReleaseKind
    noise_multiplier: float
    sample_rate: float
    steps: int
    group_size: int
    epsilon: float
    delta: float
    accountant: Method
    previous: str
    question: str = ""
    hash: str = ""

    @property
    def release(self) -> Release:
        """What was charged for."""
        return Release(
            kind=self.kind,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps,
            group_size=self.group_size,
        )


@dataclass(frozen=True, kw_only=True)
class IntegerEntry(Entry):
    """One charge for integers that left in a secure sum: a line that says, besides, what they are.

    Args:
        integers: The `Release`'s.
    """

    integers: Integers

    @property
    def release(self) -> Release:
        """What was charged for."""
        return replace(super().release, integers=self.integers)


def entry_of(release: Release, **rest: Any) -> Entry:
    """The line that charges for `release`; `rest` are the fields of `Entry` that are not the release's."""
    values = {part.name: getattr(release, part.name) for part in fields(Release)}
    integers = values.pop("integers")
    return Entry(**values, **rest) if integers is None else IntegerEntry(integers=integers, **values, **rest)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A verified ledger."""

    header: Header
    entries: tuple[Entry, ...] = ()

    @property
    def releases(self) -> tuple[Release, ...]:
        """Every charged release, in order."""
        return tuple(entry.release for entry in self.entries)

    @property
    def epsilon(self) -> float:
        """What the ledger says was spent; 0 before the first charge."""
        return self.entries[-1].epsilon if self.entries else 0.0

    @property
    def head(self) -> str:
        """Hash of the last line, 64 hexadecimal digits; whoever keeps it can notice a cut end."""
        return self.entries[-1].hash if self.entries else self.header.hash

    @property
    def private(self) -> bool:
        """False when the budget is infinite: privacy was off."""
        return math.isfinite(self.header.budget)


def read_ledger(path: Path) -> Ledger:
    """The ledger at `path`, verified whole.

    Raises:
        StorageError: it cannot be read, or is not a ledger, or ends in the middle of a line.
        PrivacyError: it was altered: the chain, the order, the budget or the delta does not hold.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LINE * 2)
            if b"\n" in content:  # a huge file that is not a ledger is not read whole
                content += file.read(MAX_BYTES)
    except OSError as error:
        raise StorageError(f"the ledger cannot be read ({error.strerror})", where=str(path)) from None
    return parse_ledger(content, where=str(path))


def parse_ledger(content: bytes, *, where: str) -> Ledger:
    """The ledger in `content`; errors as `read_ledger`."""
    if len(content) > MAX_BYTES or content.count(b"\n") > MAX_ENTRIES + 1:
        raise StorageError(
            f"the ledger has more than {MAX_ENTRIES} entries, or {MAX_BYTES} bytes",
            where=where,
            do="this is not a ledger; no budget pays for as many releases",
        )
    *lines, tail = content.split(b"\n")
    if tail or not lines:
        nth = len(lines) + 1
        raise StorageError(
            "the ledger ends in the middle of a line" if content else "the ledger is empty",
            where=f"{where}, line {nth}",
            do="a crash while charging can do this: the platform cuts the torn line off when it next opens the ledger",
        )
    header = _header(_table(lines[0], Header, where=f"{where}, line 1"), where=f"{where}, line 1")
    entries: list[Entry] = []
    previous = header.hash
    for nth, line in enumerate(lines[1:], start=2):
        place = f"{where}, line {nth}"
        entry = _entry(_table(line, Entry, where=place), where=place)
        hold(entry.seq == nth - 1, f"entry {entry.seq} stands where entry {nth - 1} belongs", place)
        hold(entry.previous == previous, "the chain is broken: this line does not follow the one before it", place)
        hold(entry.delta == header.delta, f"delta is {entry.delta}, the ledger's is {header.delta}", place)
        hold(entry.epsilon <= header.budget, f"epsilon {entry.epsilon} is above the budget of {header.budget}", place)
        # Without a promise there is no figure: a finite one would look like a guarantee.
        hold(math.isfinite(header.budget) or math.isinf(entry.epsilon), "a finite epsilon although privacy is off", place)
        previous = entry.hash
        entries.append(entry)
    return Ledger(header=header, entries=tuple(entries))


def seal_line(line: Header | Entry) -> tuple[str, bytes]:
    """The hash of `line` (its own `hash` field left out), and the bytes to write, newline and all."""
    values = _plain(line)
    digest = hashlib.sha256(canonical_json(values)).hexdigest()
    return digest, canonical_json({**values, "hash": digest}) + b"\n"


def canonical_json(values: dict[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII, shortest floats; one text per value.

    >>> canonical_json({"b": 1.0, "a": "x"})
    b'{"a":"x","b":1.0}'
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def now() -> str:
    """The present time as a ledger writes it."""
    return datetime.now(UTC).strftime(TIME)


def _plain(line: Header | Entry) -> dict[str, Any]:
    # JSON knows no infinity: it is the word "inf", in the only two fields that may be infinite.
    values = {part.name: getattr(line, part.name) for part in fields(line) if part.name != "hash"}
    for name in ("budget", "epsilon"):
        if name in values and math.isinf(values[name]):
            values[name] = "inf"
    if isinstance(line, IntegerEntry):
        # What is 0 for almost all is written only where it is not.
        values["integers"] = {name: value for name, value in asdict(line.integers).items() if name != "local" or value}
    if values.get("question") == "":
        del values["question"]
    return values


def _table(line: bytes, kind: type[Header] | type[Entry], *, where: str) -> dict[str, Any]:
    """The line's values, its hash checked: nothing but canonical JSON with a true hash gets through."""
    if len(line) >= MAX_LINE:
        raise StorageError(f"a line of {len(line)} bytes", where=where, do="this is not a ledger, or it is damaged")
    try:
        values = json.loads(line.decode("ascii"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        damaged("not JSON", where)
    if not isinstance(values, dict):
        damaged("not a JSON object", where)
    if kind is Entry and "integers" in values:
        kind = IntegerEntry
    expected = {part.name for part in fields(kind)} - ({"question"} - set(values))
    if set(values) != expected:
        damaged(f"fields differ from a ledger's by {sorted(set(values) ^ expected)!r:.200}", where)
    digest = values.pop("hash")
    try:
        body = canonical_json(values)
        text = canonical_json({**values, "hash": digest})
    except (ValueError, RecursionError):
        damaged("values that no ledger holds", where)
    # Comparing the text also refuses doubled keys, other spellings of a number, and spaces.
    if text != line:
        damaged("not canonical JSON", where)
    hold(digest == hashlib.sha256(body).hexdigest(), "the line was altered: its hash is not the hash of its content", where)
    return {**values, "hash": digest}


def _header(values: dict[str, Any], *, where: str) -> Header:
    if values["version"] not in READABLE or isinstance(values["version"], bool):
        raise StorageError(
            f"ledger version {values['version']!r:.40}",
            where=where,
            do=f"this program reads versions {READABLE[0]} to {READABLE[-1]}: update it",
        )
    header = Header(
        version=values["version"],
        platform=matching(values, "platform", NAME, where),
        budget=number(values, "budget", where, infinite=True),
        delta=number(values, "delta", where),
        unit=UNIT,
        created=moment(values, "created", where),
        seq=whole_number(values, "seq", where, at_most=0),
        previous=matching(values, "previous", _HASH, where),
        hash=matching(values, "hash", _HASH, where),
    )
    hold(values["unit"] == UNIT, f"the unit of privacy is not {UNIT!r}", where)
    hold(header.previous == GENESIS, "the first line names a line before it: the beginning was cut off", where)
    hold(header.budget > 0, f"the budget is {header.budget}", where)
    hold(0 < header.delta < 1, f"delta is {header.delta}", where)
    return header


def _entry(values: dict[str, Any], *, where: str) -> Entry:
    try:
        kind, method = ReleaseKind(values["kind"]), Method(values["accountant"])
    except (ValueError, TypeError):
        damaged(f"kind {values['kind']!r:.60} or accountant {values['accountant']!r:.60} is unknown to this version", where)
    optional: dict[str, Any] = {}
    if "integers" in values:
        optional["integers"] = _integers(values["integers"], where)
    if "question" in values:
        optional["question"] = matching(values, "question", _HASH, where)
    make = IntegerEntry if "integers" in values else Entry
    entry = make(
        **optional,
        seq=whole_number(values, "seq", where, at_most=MAX_ENTRIES),
        time=moment(values, "time", where),
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
        hash=matching(values, "hash", _HASH, where),
    )
    try:
        _ = entry.release  # checks every range, of the integers too
    except FedfuseError as error:
        damaged(error.found, where)
    return entry


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


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
