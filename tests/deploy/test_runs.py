"""Runs in line: one at work without a terminal, one that waits, one that is ended; and a second federation beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.stage import Stage, until

NAMES = ("north", "south", "west")
LOOSE = ["--set", "secure.threshold=0.6", "--set", "secure.colluders=0", "--set", "server.minimum_platforms=2"]


@pytest.mark.slow
@pytest.mark.deploy
@pytest.mark.timeout(1500)
def test_runs_take_turns_and_are_ended(stage: Stage, small_shop: Callable[..., Path], tmp_path: Path) -> None:
    stage.found({name: small_shop(name) for name in NAMES})
    at = ("--server", stage.coordinator)
    train = ["--strategy", "secure-sum", "--rounds", "200", "--platforms", "3", *LOOSE]
    said = json.loads(stage.run("first", *train, "--detach", "--json").stdout)
    assert said["run"] == "first"
    refused = stage.run("second", check=False)
    assert refused.returncode == 6 and "run first is at work" in refused.stderr and "--queue" in refused.stderr
    assert not stage.folder("second").exists()
    share = ["--platforms", "3", "--set", "preferences.items=5", *LOOSE]
    stage.fedfuse("run", *at, "--name", "second", "--queue", "--detach", *share)
    stage.await_round("first", 1)
    assert states(stage) == {"first": "running", "second": "queued"}

    # A second federation on this machine has ports, operators and a line of its own.
    other = Stage(tmp_path / "beside", backbone=stage.backbone, name="autumn")
    other.root.mkdir()
    try:
        other.make()
        other.serve()
        other.fedfuse("server", "health", other.coordinator)
        assert states(other) == {} and {stage.port, stage.control}.isdisjoint({other.port, other.control})
        assert "autumn" in other.fedfuse("log", "--server", other.coordinator).stdout
    finally:
        other.close()

    # Ended by an operator, the first makes room for the second.
    ended = stage.fedfuse("abort", "first", *at)
    assert "run first is aborted after" in ended.stdout
    follow = stage.fedfuse("runs", *at, "--follow", "second", timeout=900)
    assert "waits for" not in follow.stdout and "finished after 0 rounds" in follow.stdout
    found = {one["run"]: one for one in json.loads(stage.fedfuse("runs", *at, "--json").stdout)}
    assert {name: one["state"] for name, one in found.items()} == {"first": "aborted", "second": "finished"}
    assert found["first"]["round"] >= 1 and found["first"]["code"] == 130 and found["first"]["operator"] == "owner"
    assert found["second"]["spent"] > 0 and set(found["second"]["platforms"]) == set(NAMES)
    until(lambda: not stage.find("server.scheduling.detached"), "nobody watches any run", stage.logs, seconds=60)
    until(lambda: not stage.find("flwr-serverapp"), "no run is at work", stage.logs, seconds=60)

    # It is wanted again after all, and then not.
    stage.fedfuse("run", *at, "--resume", "first", "--detach")
    until(lambda: states(stage)["first"] == "running", "first is at work again", stage.logs)
    stage.fedfuse("abort", "first", *at)
    assert states(stage)["first"] == "aborted"
    log = json.loads(stage.fedfuse("log", *at, "--json", "--verify", "--last", "0").stdout)["actions"]
    assert [(one["verb"], one["of"]) for one in log][-6:] == [
        ("approve", "west"), ("run", "first"), ("run", "second"), ("abort", "first"), ("resume", "first"), ("abort", "first"),
    ]  # fmt: skip


def states(stage: Stage) -> dict[str, str]:
    done = stage.fedfuse("runs", "--server", stage.coordinator, "--json")
    return {one["run"]: one["state"] for one in json.loads(done.stdout)}
