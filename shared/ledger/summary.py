"""What a ledger says, in memory that does not grow with it: equal charges are counted, not kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.ledger.format import Entry, Header, IdentityRecord, Line, ReleaseRecord
from shared.ledger.reading import LedgerReader, Signatures, UnreadableLedger, scan_ledger
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

MAX_DISTINCT = 100_000
"""Different mechanisms, over all runs, that are counted apart; a real ledger has a few for every run."""

_Key = tuple[str, ReleaseKind, float, float, int, Integers | None]


@dataclass(frozen=True, kw_only=True)
class Named:
    """A line that somebody outside names by its hash.

    Args:
        line: Its number, 0 for the header.
        left: What left by it; empty where it is no release record.
        epsilon: Spent by then.
        charges: Made by then.
    """

    line: int
    left: str = ""
    epsilon: float = 0.0
    charges: int = 0


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What was charged up to a line, and what the ledger said of it there."""

    line: int
    epsilon: float
    accountant: Method
    releases: tuple[Release, ...]


@dataclass(kw_only=True)
class LedgerSummary:
    """A verified ledger, summed up.

    Args:
        identity: The key that signs its last line, 32 bytes; empty where none does.
        lines: After the header.
        unsigned: Of these, those without a signature.
        kinds: Kind -> charges.
        charges: Run, kind, noise multiplier, sample rate, group size and integers -> steps.
        released: Release records that name a charge.
        rowless: Release records that name none: the platform states that no row took part.
        named: The lines that were looked for, by hash.
        prefixes: After 1, 4, 16, 64... charges.
        last: The last charge.
        charged: Charges.
        next_prefix: After how many charges the next one is kept.
    """

    header: Header
    identity: bytes = b""
    head: str = ""
    lines: int = 0
    unsigned: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    charges: Counter[_Key] = field(default_factory=Counter)
    released: int = 0
    rowless: int = 0
    named: dict[str, Named] = field(default_factory=dict)
    prefixes: list[Prefix] = field(default_factory=list)
    last: Entry | None = None
    charged: int = 0
    next_prefix: int = 1

    @property
    def unreleased(self) -> int:
        """Signed charges that no release record names."""
        return max(0, self.charged - self.released - self.unsigned)

    @property
    def epsilon(self) -> float:
        """What the ledger says was spent."""
        return 0.0 if self.last is None else self.last.epsilon

    @property
    def private(self) -> bool:
        """False when privacy was off."""
        return math.isfinite(self.header.budget)

    def releases(self, run: str | None = None) -> tuple[Release, ...]:
        """Every charged release, equal ones as one of more steps, of one run or of all."""
        total: Counter[tuple[ReleaseKind, float, float, int, Integers | None]] = Counter()
        for (of, *rest), steps in self.charges.items():
            if run is None or of == run:
                total[tuple(rest)] += steps  # type: ignore[index]
        return tuple(
            Release(kind=kind, noise_multiplier=noise, sample_rate=rate, steps=steps, group_size=group, integers=integers)
            for (kind, noise, rate, group, integers), steps in total.items()
        )

    def runs(self) -> tuple[str, ...]:
        """Names of all runs, in the order in which they were first charged."""
        return tuple(dict.fromkeys(run for run, *_ in self.charges))

    def take(self, line: Line) -> None:
        """Count one more line.

        Raises:
            UnreadableLedger: too many different mechanisms.
        """
        self.lines += 1
        self.unsigned += not line.signature
        if isinstance(line, ReleaseRecord):
            self.released += bool(line.charge)
            self.rowless += not line.charge
        elif not isinstance(line, IdentityRecord):
            integers = getattr(line, "integers", None)
            key = (line.run, line.kind, line.noise_multiplier, line.sample_rate, line.group_size, integers)
            self.charges[key] += line.steps
            if len(self.charges) > MAX_DISTINCT:
                raise UnreadableLedger(f"more than {MAX_DISTINCT} different mechanisms", where=f"line {self.lines + 1}")
            self.kinds[str(line.kind)] += 1
            self.charged += 1
            self.last = line
            if self.charged == self.next_prefix:
                self.next_prefix *= 4
                self.prefixes.append(
                    Prefix(line=line.seq, epsilon=line.epsilon, accountant=line.accountant, releases=self.releases())
                )


def summarise_ledger(
    path: Path,
    *,
    wanted: Mapping[str, object] | None = None,
    signatures: Signatures = Signatures.LAST,
    tell: Callable[[Line], None] | None = None,
) -> LedgerSummary:
    """The ledger at `path`, verified and summed up.

    Args:
        wanted: Hashes of lines that somebody names.
        tell: Told every line after the header.

    Raises:
        UnreadableLedger: it cannot be read, is of another version, ends in the middle of a line, or is no ledger.
        StorageError: a line is damaged.
        PrivacyError: it was altered.
    """
    wanted = wanted or {}
    reader = LedgerReader(where=str(path), signatures=signatures)
    summary: LedgerSummary | None = None
    try:
        with path.open("rb") as file:
            lines = scan_ledger(file, reader, where=str(path))
            for line in lines:
                summary = summary or _begun(reader, wanted)
                summary.take(line)
                if line.hash in wanted:
                    summary.named[line.hash] = Named(
                        line=line.seq,
                        left=line.left if isinstance(line, ReleaseRecord) else "",
                        epsilon=summary.epsilon,
                        charges=summary.charged,
                    )
                if tell is not None:
                    tell(line)
    except OSError as error:
        raise UnreadableLedger(f"the ledger cannot be read ({error.strerror})", where=str(path)) from None
    summary = summary or _begun(reader, wanted)
    summary.identity, summary.head = reader.identity, reader.head
    return summary


def _begun(reader: LedgerReader, wanted: Mapping[str, object]) -> LedgerSummary:
    assert reader.header is not None
    header = replace(reader.header)
    named = {header.hash: Named(line=0)} if header.hash in wanted else {}
    return LedgerSummary(header=header, named=named)
