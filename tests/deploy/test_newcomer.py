"""A platform that nobody trusts yet: asked beforehand, left out of the run, and said so wherever people look; real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.ledger.reading import read_ledger
from tests.deploy.stage import Stage

NAMES = ("north", "south", "west")
LOOSE = ["--set", "secure.threshold=0.6", "--set", "secure.colluders=0", "--set", "server.minimum_platforms=2"]
WHY = "do not know `east`: run `fedfuse client trust`"


def spent(stage: Stage, name: str) -> tuple[float, bytes]:
    path = stage.root / name / "worker" / "ledger" / f"{name}.jsonl"
    return read_ledger(path).epsilon, path.read_bytes()


@pytest.mark.slow
@pytest.mark.deploy
@pytest.mark.timeout(1500)
def test_a_newcomer_keeps_nobody_from_a_run(stage: Stage, small_shop: Callable[..., Path]) -> None:
    stage.found({name: small_shop(name) for name in NAMES})
    stage.make_platform("east", "--data", small_shop("east"))
    others = [stage.root / name / "application.toml" for name in NAMES]
    stage.fedfuse("client", "trust", stage.root / "east", *others, "--yes")
    stage.edit(stage.root / "east", "colluders = 1 ", "colluders = 0 ")
    stage.join("east")
    stage.await_online("east")

    # Asked beforehand: who would be in, and what it would cost. Nothing is spent, and no run is there.
    before = {name: spent(stage, name) for name in (*NAMES, "east")}
    dry = stage.run("first", "--dry-run", "--json", *LOOSE)
    said = json.loads(dry.stdout)
    found = {line["platform"]: line for line in said["platforms"]}
    assert said["begins"] and {name for name, line in found.items() if line["takes_part"]} == set(NAMES), stage.logs()
    assert WHY in found["east"]["why"]
    assert all(0 < found[name]["epsilon"] <= 12.5 and found[name]["left"] == 50.0 for name in NAMES)
    assert {name: spent(stage, name) for name in before} == before and not stage.folder("first").exists()
    alone = stage.run("first", "--dry-run", "--set", "secure.colluders=2", check=False)
    assert alone.returncode == 6 and "3 platforms would take part, and 4 are needed" in alone.stdout

    # The run: three of four, at what they said.
    done = stage.run("first", "--platforms", "3", *LOOSE)
    assert WHY in done.stdout
    state = stage.state("first")
    assert state["state"] == "finished" and set(state["left_out"]) == {"east"} and WHY in state["left_out"]["east"]
    assert WHY in stage.status()["run"]["left_out"]["east"]
    assert WHY in (stage.folder("first") / "model" / "README.md").read_text()
    for name in NAMES:
        assert spent(stage, name)[0] == pytest.approx(found[name]["epsilon"], rel=0.05)
    assert spent(stage, "east") == before["east"]
    assert stage.run("second", "--only", "north,east", *LOOSE, check=False).returncode == 6
