"""The benchmark of long ledgers: what it writes is a sound ledger, and what it measures is a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.ledger.audit import AuditVerdict, audit_ledgers
from shared.ledger.evidence import heads_evidence
from simulations.benchmarks.ledger.verification import cost_of, write_long_ledger


@pytest.mark.parametrize("entries", [1, 2, 61])
def test_the_ledger_is_sound(tmp_path: Path, entries: int) -> None:
    head = write_long_ledger(tmp_path / "long.jsonl", entries)
    report = audit_ledgers([tmp_path / "long.jsonl"], name="test", evidence=heads_evidence([head]))
    (platform,) = report.platforms
    assert report.verdict is AuditVerdict.SOUND, report.problems
    assert platform.head == head and platform.entries == {"train": (entries + 1) // 2} and platform.released == entries // 2


def test_a_command_is_measured_and_a_failed_one_is_no_figure() -> None:
    found = cost_of("version", ["--version"], entries=0, megabytes=0.0)
    assert found.peak_mib > 10 and found.wall > 0
    with pytest.raises(RuntimeError, match="ended with 2"):
        cost_of("verify", ["ledger", "verify", "/nowhere"], entries=0, megabytes=0.0)
