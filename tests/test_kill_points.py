"""Killed at any point, a process leaves what a restarted one needs: no charge lost, no half file, no half version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def deaths(folder: Path, backbone: str, *scenarios: str) -> dict[str, dict[str, Any]]:
    """Runs the scenarios in a process of their own, whose forks are the ones that die."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_points", str(folder), *scenarios, "--backbone", backbone],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    return {line["scenario"]: line for line in map(json.loads, run.stdout.splitlines())}


@pytest.mark.timeout(600)
def test_every_point_of_the_ledger_and_the_checkpoint_and_some_of_the_others(tmp_path: Path, tiny_bert: str) -> None:
    found = deaths(
        tmp_path,
        tiny_bert,
        "ledger:1:3:15",
        "checkpoints:1:0:15",
        "platform:25:0:0",
        "publisher:60:0:0",
        "puller:35:0:0",
        "ending:40:0:0",
    )
    for name in ("ledger", "checkpoints"):
        assert found[name]["point"] == found[name]["points"]  # each of them did kill
        assert found[name]["point"] + found[name]["torn"] + found[name]["random"] > 80
    assert found["ledger"]["point"] + found["ledger"]["torn"] + found["checkpoints"]["point"] >= 150
    assert all(found[name]["point"] >= 5 for name in ("platform", "publisher", "puller", "ending"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", ["ledger:1:40:100", "checkpoints:1:0:100", "platform:1:0:40", "publisher:1:0:40"])
def test_every_point(tmp_path: Path, tiny_bert: str, scenario: str) -> None:
    (found,) = deaths(tmp_path, tiny_bert, scenario).values()
    assert found["point"] == found["points"] > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", ["puller:1:0:40", "ending:1:0:40"])
def test_every_point_of_folders_that_change_places(tmp_path: Path, tiny_bert: str, scenario: str) -> None:
    (found,) = deaths(tmp_path, tiny_bert, scenario).values()
    assert found["point"] == found["points"] > 50
