"""A platform dies in a sum that needs everybody, comes back, is revoked and is let in again: real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.ledger.reading import read_ledger
from tests.deploy.stage import Stage, until

NAMES = ("north", "south", "west")
EVERYBODY = ["--strategy", "secure-sum", "--set", "secure.threshold=1.0", "--set", "secure.colluders=0"]


@pytest.mark.slow
@pytest.mark.deploy
@pytest.mark.timeout(1200)
def test_a_round_waits_for_the_platform_that_it_lacks(stage: Stage, small_shop: Callable[..., Path]) -> None:
    stage.found({name: small_shop(name) for name in NAMES})
    words = ("run", "--server", stage.coordinator, "--name", "first", "--rounds", "3", "--platforms", "3")
    federation = stage.spawn("run", *words, *stage.tiny(), *EVERYBODY)
    stage.await_round("first", 1)
    for process in [*stage.below("west"), stage.processes["west"]]:
        process.kill()
    stage.processes["west"].wait(30)
    until(lambda: _waits(stage, "west"), "the coordinator waits for west", stage.logs, seconds=300.0)
    stage.join("west")
    until(lambda: federation.poll() is not None, "the run is over", stage.logs, seconds=600)
    assert federation.returncode == 0, stage.logs()
    state = stage.state("first")
    assert (state["state"], state["round"]) == ("finished", 3)
    assert {name: line["rounds"] for name, line in state["platforms"].items()} == dict.fromkeys(NAMES, 3)
    for name in NAMES:  # nobody has paid twice
        ledger = read_ledger(stage.root / name / "worker" / "ledger" / f"{name}.jsonl")
        assert [entry.round for entry in ledger.entries if str(entry.kind) == "train"] == [1, 2, 3]
    assert "| rounds | 3 |" in (stage.folder("first") / "model" / "README.md").read_text()

    # Revoked, it stops; approved again, it is back, and so is everybody when the server comes back.
    stage.fedfuse("revoke", "north", "--server", stage.coordinator)
    until(lambda: stage.processes["north"].poll() is not None, "north has stopped", stage.logs)
    application = stage.root / "north" / "application.toml"
    shown = json.loads(stage.fedfuse("status", "--server", stage.coordinator, "--json").stdout)["platforms"]
    (mark,) = [one["fingerprint"] for one in shown if one["name"] == "north"]
    stage.fedfuse("approve", "north", application, "--server", stage.coordinator, "--fingerprint", mark)
    stage.join("north")
    stage.await_online(*NAMES)
    stage.processes["server"].terminate()
    stage.processes["server"].wait(60)
    stage.serve()
    stage.await_online(*NAMES)


def _waits(stage: Stage, name: str) -> bool:
    return any(event["kind"] == "waiting" and f"{name} will be asked again" in event["text"] for event in stage.events("first"))
