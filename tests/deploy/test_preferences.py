"""The default run, deployed: three shops share which items are liked together, and each recommends with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.ledger.audit import AuditVerdict, audit_ledgers, audit_run
from shared.ledger.evidence import LedgerEvidence, receipts_evidence
from shared.ledger.reading import read_ledger
from shared.ledger.receipts import RECEIPTS
from shared.preferences.shared_preferences import FILE, load_preferences
from shared.protocol.keys import load_ed25519
from tests.deploy.stage import Stage, until

NAMES = ("north", "south", "west")
LOOSE = ["--set", "secure.threshold=0.6", "--set", "secure.colluders=0", "--set", "server.minimum_platforms=2"]


@pytest.mark.slow
@pytest.mark.deploy
@pytest.mark.timeout(900)
def test_three_shops_share_preferences_whoever_is_killed(stage: Stage, small_shop: Callable[..., Path]) -> None:
    stage.found({name: small_shop(name) for name in NAMES})

    # No strategy is named, and no backbone is loaded: the platforms' terms do not even allow this one. The coordinator is killed
    # in the middle, and comes back.
    words = ("run", "--server", stage.coordinator, "--name", "first", "--platforms", "3", "--set", "preferences.items=5", *LOOSE)
    federation = stage.spawn("run", *words)
    until(lambda: any(event["kind"] == "secured" for event in stage.events("first")), "shares are dealt", stage.logs)
    for process in stage.find("flwr-serverapp"):
        process.kill()
    until(lambda: federation.poll() is not None, "the run is over", stage.logs, seconds=600)
    assert federation.returncode == 0, stage.logs()
    assert stage.state("first")["state"] == "finished"
    for name in NAMES:
        ledger = read_ledger(stage.root / name / "worker" / "ledger" / f"{name}.jsonl")
        assert [str(entry.kind) for entry in ledger.entries] == ["popularity", "preferences"] and ledger.epsilon <= 50.0
        audit_as_an_auditor(stage, name)
        assert not list((stage.root / name / "worker").rglob("trunk/*"))

    model = stage.root / "model"
    stage.fedfuse("pull", stage.folder("first"), "--unsigned", "--out", model)
    found = load_preferences(model / FILE)
    assert len(found.items) == 5 and found.users == 300
    platform = stage.root / "north"
    table = json.loads(stage.fedfuse("evaluate", platform, "--model", model, "--json").stdout)
    assert {"own", "global", "fused", "fused_minus_own"} <= set(table["segments"]["all"])
    for words in (["--user", "u1"], ["--user", "u1", "--private"], ["--like", "i3"], ["--user", "nobody"]):
        items = json.loads(stage.fedfuse("recommend", "--platform", platform, "--model", model, *words, "--json").stdout)
        assert len(items) >= 6 and all(item["because"] for item in items)


def audit_as_an_auditor(stage: Stage, name: str) -> None:
    """One platform's ledger against the coordinator's receipts, whole and without its end."""
    worker = stage.root / name / "worker"
    path, key = worker / "ledger" / f"{name}.jsonl", load_ed25519(stage.coordinator / "keys" / "federation.key")
    trusted = [key.public_key().public_bytes_raw()]
    evidence = receipts_evidence(stage.folder("first") / RECEIPTS, trusted=trusted)
    (one,) = (report := audit_ledgers([path], name=name, evidence=evidence)).platforms
    assert report.verdict is AuditVerdict.SOUND, report.problems
    assert one.identity and one.released == 2 <= one.checked
    assert all(witness.receipt is not None and witness.receipt.vouched for witness in evidence.witnesses)
    # What comes back to the platform, it keeps; that alone bears nothing out.
    assert audit_run(worker).verdict is AuditVerdict.UNKNOWN and audit_run(worker).ok
    kept = receipts_evidence(worker / RECEIPTS, trusted=trusted, own=True).witnesses
    assert kept and {witness.head for witness in kept} <= {witness.head for witness in evidence.witnesses}
    cut = stage.root / f"{name}.cut.jsonl"
    cut.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    assert audit_ledgers([cut], name=name, evidence=evidence).verdict is AuditVerdict.UNSOUND
    assert audit_ledgers([cut], name=name, evidence=LedgerEvidence()).verdict is AuditVerdict.UNKNOWN
