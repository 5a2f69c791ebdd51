"""The click objective, end to end: a run, probabilities of what is recommended, and an evaluation of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedfuse
from shared.base.settings import Settings
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import open_world

Write = Callable[..., Path]


@pytest.fixture
def clicked(write_platform: Write, tiny_settings: Callable[..., Settings], tmp_path: Path) -> tuple[Path, Path]:
    """A platform file, and the model of a run with the click objective."""
    path, out = write_platform(users=60), tmp_path / "run"
    settings = tiny_settings(training={"objective": "click"})
    run_simulation(Simulation(world=open_world(path.parent), settings=settings, out=out))
    return path, out / "model"


def test_a_click_run_ends_in_calibrated_probabilities(clicked: tuple[Path, Path], tmp_path: Path) -> None:
    path, model = (str(one) for one in clicked)
    asked = ["recommend", "--platform", path, "--model", model, "--user", "u1", "--top", "20", "--json"]
    answered = CliRunner().invoke(fedfuse.app, asked)
    assert answered.exit_code == 0, answered.output
    likely = [item["probability"] for item in json.loads(answered.stdout)]
    assert likely == sorted(likely, reverse=True) and all(0 < one < 1 for one in likely)
    # All that are left are shown, and one of them is the next.
    assert 0.3 < sum(likely) < 2.0
    public = CliRunner().invoke(fedfuse.app, [*asked, "--private"])
    assert {item["probability"] for item in json.loads(public.stdout)} == {None}

    pytest.importorskip("matplotlib")
    options = ["--k", "3,5", "--plot", str(tmp_path / "plot.svg"), "--per-user", str(tmp_path / "users.parquet")]
    shown = CliRunner().invoke(fedfuse.app, ["evaluate", path, "--model", model, *options], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert all(
        word in shown.stdout for word in ("NDCG@3", "MRR@5", "coverage@5", "log loss", "F1", "reliability of fused", "rare-items")
    )
    assert (tmp_path / "plot.svg").exists() and (tmp_path / "users.parquet").exists()
    found = json.loads(CliRunner().invoke(fedfuse.app, ["evaluate", path, "--model", model, "--json"]).stdout)
    assert set(found["quality"]["segments"]["all"]["models"]) == {"own", "global", "fused"}
    assert found["quality"]["segments"]["all"]["models"]["global"]["click"] is None
    assert found["quality"]["lengths"] == [5, 10, 20]


@pytest.mark.parametrize("k", ["", "ten", "0,5"])
def test_lengths_that_are_none(write_platform: Write, k: str) -> None:
    failed = CliRunner().invoke(fedfuse.app, ["evaluate", str(write_platform()), "--k", k])
    assert failed.exit_code != 0 and "--k" in str(failed.exception)
