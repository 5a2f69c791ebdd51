"""The default run, deployed: three shops share which items are liked together, and each recommends with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from shared.preferences.shared_preferences import FILE, load_preferences
from tests.deploy.stage import Stage, until

NAMES = ("north", "south", "west")
LOOSE = ["--set", "secure.threshold=0.6", "--set", "secure.colluders=0", "--set", "server.minimum_platforms=2"]


@pytest.mark.deploy
@pytest.mark.timeout(900)
def test_three_shops_share_preferences_whoever_is_killed(stage: Stage, small_shop: Callable[..., Path]) -> None:
    stage.make_coordinator()
    stage.serve()
    for name in NAMES:
        stage.make_platform(name, "--data", small_shop(name))
    for name in NAMES:
        others = [stage.root / other / "application.toml" for other in NAMES if other != name]
        stage.fedfuse("client", "trust", stage.root / name, *others, "--yes")
        stage.edit(stage.root / name, "colluders = 1 ", "colluders = 0 ")
        stage.join(name)
    stage.await_online(*NAMES)

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
        assert audit_run(stage.root / name / "worker").ok
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
