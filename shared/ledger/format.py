"""The ledger's format: its lines, and their one canonical text.

A ledger is a text file of canonical JSON lines that only grows. Line 1 is the header. After it come charges, each written before
the mechanism it pays for ran; release records, each written before an answer leaves, which name the charge and the SHA-256 of
what left; and at most one identity record, with which a ledger of an earlier version goes on under the platform's key.

Each line carries the SHA-256 of itself (canonical JSON without `hash`) and of the line before, so a change, a removal or a
reordering anywhere but at the end breaks the chain. From version 3 on each line is signed by the platform's identity
(Ed25519 over the canonical JSON without `hash` and `signature`). A cut end breaks nothing: whoever holds a later *head* (the
last line's hash, which goes out with every answer) sees that it is missing (`shared/ledger/audit.py`).

A charge without a release record paid for an answer that never left, or for what stayed on the platform. It is sound. A release
record without a charge is not, and no reader takes it.

`reading` verifies lines, `audit` judges whole ledgers.
"""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from shared.ledger.chained_line import GENESIS, canonical_json, seal_values
from shared.ledger.field_checks import TIME
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method
from shared.secagg.identity import Identity, digest_of

VERSION = 3
READABLE = (1, 2, 3)
"""Version 1 had floating-point noise, and charges that did not name their question. Versions 1 and 2 are not signed, and do not
name what left."""
SIGNED = 3
"""The first version whose lines are signed."""
UNIT = "one user of one platform, add or remove"

MAX_LINE = 2048
MAX_ENTRIES = 4_000_000
"""Lines after the header."""
MAX_BYTES = 1 << 32
MAX_ROUND = 1 << 53


@dataclass(frozen=True, kw_only=True)
class Header:
    """Line 1: whose ledger it is and what it may spend. Constant for the life of the ledger.

    Args:
        identity: The platform's Ed25519 public key, base64; empty before version 3.
        signature: Ed25519 over the line, base64; empty before version 3.
    """

    version: int = VERSION
    platform: str
    budget: float
    delta: float
    unit: str = UNIT
    created: str
    seq: int = 0
    previous: str = GENESIS
    identity: str = ""
    signature: str = ""
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
        signature: Ed25519 over the line, base64; empty before the ledger has an identity.
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
    signature: str = ""
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
class ReleaseRecord:
    """What left, written before it did.

    Args:
        charge: Hash of the charge that paid for it; empty for an answer that no row took part in.
        left: SHA-256 of what left (`shared/ledger/release_digest.py`), hex.
    """

    seq: int
    time: str
    run: str
    round: int
    charge: str
    left: str
    previous: str
    signature: str = ""
    hash: str = ""


@dataclass(frozen=True, kw_only=True)
class IdentityRecord:
    """From here on every line of a ledger that began unsigned is signed.

    Args:
        identity: The platform's Ed25519 public key, base64.
    """

    seq: int
    time: str
    identity: str
    previous: str
    signature: str = ""
    hash: str = ""


Line = Entry | ReleaseRecord | IdentityRecord
"""Any line after the header."""
AnyLine = TypeVar("AnyLine", Header, Entry, IntegerEntry, ReleaseRecord, IdentityRecord)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A verified ledger."""

    header: Header
    lines: tuple[Line, ...] = ()

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every charge, in order."""
        return tuple(line for line in self.lines if isinstance(line, Entry))

    @property
    def identity(self) -> str:
        """The key that signs its last line, base64; empty where none does."""
        records = (line.identity for line in self.lines if isinstance(line, IdentityRecord))
        return self.header.identity or next(records, "")

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
        return self.lines[-1].hash if self.lines else self.header.hash

    @property
    def private(self) -> bool:
        """False when the budget is infinite: privacy was off."""
        return math.isfinite(self.header.budget)


def sign_line(line: AnyLine, identity: Identity) -> AnyLine:
    """The line with the signature of the platform's key."""
    return replace(line, signature=b64encode(identity.sign(signed_digest(canonical_json(_plain(line))))).decode("ascii"))


def signed_digest(body: bytes) -> bytes:
    """What is signed of a line whose canonical JSON without hash and signature is `body`."""
    return digest_of("ledger line", body)


def seal_line(line: Header | Line) -> tuple[str, bytes]:
    """The hash of `line` (its own `hash` field left out), and the bytes to write, newline and all."""
    values = {**_plain(line), **({"signature": line.signature} if line.signature else {})}
    return seal_values(values)


def now() -> str:
    """The present time as a ledger writes it."""
    return datetime.now(UTC).strftime(TIME)


def _plain(line: Header | Line) -> dict[str, Any]:
    """Without hash and signature."""
    # JSON knows no infinity: it is the word "inf", in the only two fields that may be infinite.
    values = {part.name: getattr(line, part.name) for part in fields(line) if part.name not in ("hash", "signature")}
    for name in ("budget", "epsilon"):
        if name in values and math.isinf(values[name]):
            values[name] = "inf"
    if isinstance(line, IntegerEntry):
        # What is 0 for almost all is written only where it is not.
        values["integers"] = {name: value for name, value in asdict(line.integers).items() if name != "local" or value}
    for name in ("question", "identity"):  # what earlier versions do not have
        if values.get(name) == "":
            del values[name]
    return values
