"""Time and memory of auditing a ledger, as it grows: both must fit an auditor's laptop, and memory must not grow at all.

    python -m simulations.benchmarks.ledger.verification --out FOLDER [--entries 10000 100000 1000000] [--every] [--json]

A ledger as a platform writes it: every second entry is a charge, each followed by the record of what left, all of them signed.
Each measurement is a command in a process of its own: wall time, processor time, and the most memory that it held.

- verify: `fedfuse ledger verify`: every line, the chain, and the last signature, which covers all.
- audit: `fedfuse audit --head`: the same, and epsilon by three accountants, at the end and on the way.
- every: `fedfuse ledger verify --every`: each signature by itself (with --every).

On a shared machine the wall time tells of its other users, too: go by the processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.ledger.format import Header, ReleaseRecord, entry_of, seal_line, sign_line
from shared.privacy.accountants import NUMERICAL
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.identity import Identity

_TIME = "2030-01-02T03:04:05Z"
_RELEASE = Release(kind=ReleaseKind.TRAIN, noise_multiplier=10.0, sample_rate=1e-3)
_DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class AuditCost:
    """What one command took on one ledger.

    Args:
        entries: Lines after the header.
        wall, processor: Seconds.
        peak_mib: Most memory held.
    """

    entries: int
    megabytes: float
    command: str
    wall: float
    processor: float
    peak_mib: float


def write_long_ledger(path: Path, entries: int) -> str:
    """A sound ledger of so many lines after its header.

    Returns:
        Its head.
    """
    identity = Identity(b"long ledger".ljust(32))
    key = b64encode(identity.public).decode("ascii")
    head, line = seal_line(sign_line(Header(platform="shop", budget=100.0, delta=_DELTA, created=_TIME, identity=key), identity))
    spent, known, charges = NUMERICAL.epsilon([], _DELTA), 0, (entries + 1) // 2
    with path.open("wb") as file:
        file.write(line)
        for seq in range(1, entries + 1):
            charge = (seq + 1) // 2
            if seq % 2:
                if charge > known:
                    # An auditor looks at the charges 1, 4, 16... and the last; a bound for more of them holds for fewer.
                    known = min(charges, max(1, 4 * known))
                    spent = NUMERICAL.epsilon([replace(_RELEASE, steps=known)], _DELTA)
                entry = entry_of(
                    _RELEASE,
                    seq=seq,
                    time=_TIME,
                    run="spring",
                    round=charge,
                    epsilon=spent.epsilon,
                    delta=_DELTA,
                    accountant=spent.accountant,
                    previous=head,
                    question=f"{charge:064x}",
                )
                head, line = seal_line(sign_line(entry, identity))
            else:
                record = ReleaseRecord(
                    seq=seq, time=_TIME, run="spring", round=charge, charge=head, left=f"{seq:064x}", previous=head
                )
                head, line = seal_line(sign_line(record, identity))
            file.write(line)
    return head


def cost_of(name: str, arguments: Sequence[str], *, entries: int, megabytes: float) -> AuditCost:
    """Run `fedfuse` with those arguments in a process of its own, and measure it.

    Raises:
        RuntimeError: it found something other than a sound ledger.
    """
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "fedfuse", *arguments], stdout=subprocess.DEVNULL)  # noqa: S603 - our own
    _, status, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{name} of {entries} entries ended with {process.returncode}")
    return AuditCost(
        entries=entries,
        megabytes=round(megabytes, 1),
        command=name,
        wall=round(wall, 1),
        processor=round(used.ru_utime + used.ru_stime, 1),
        peak_mib=round(used.ru_maxrss / 1024, 1),
    )


def verification_costs(folder: Path, entries: int, *, every: bool = False) -> list[AuditCost]:
    """What the commands take on a ledger of so many entries, which is written to `folder` and removed."""
    folder.mkdir(parents=True, exist_ok=True)
    ledger = folder / f"{entries}.jsonl"
    try:
        head = write_long_ledger(ledger, entries)
        megabytes = ledger.stat().st_size / 1e6
        commands = {
            "verify": ["ledger", "verify", str(ledger)],
            "audit": ["audit", str(ledger), "--head", head],
            **({"every": ["ledger", "verify", "--every", str(ledger)]} if every else {}),
        }
        return [cost_of(name, words, entries=entries, megabytes=megabytes) for name, words in commands.items()]
    finally:
        ledger.unlink(missing_ok=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time and memory of auditing a ledger, as it grows.")
    parser.add_argument("--out", type=Path, required=True, help="folder for ledgers while they are measured")
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--every", action="store_true", help="also each signature by itself")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found = [one for entries in options.entries for one in verification_costs(options.out, entries, every=options.every)]
    if options.json:
        json.dump([asdict(one) for one in found], sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(title="Auditing a ledger")
    for name in ("entries", "MB", "command", "wall s", "processor s", "peak MiB"):
        table.add_column(name, justify="left" if name == "command" else "right")
    for one in found:
        figures = f"{one.megabytes:.1f}", one.command, f"{one.wall:.1f}", f"{one.processor:.1f}", f"{one.peak_mib:.0f}"
        table.add_row(f"{one.entries:,}", *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
