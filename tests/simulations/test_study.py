"""Several seeds and settings in one command: resumable, with intervals, and a way past the refusal of noisy plans."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import fedfuse
from shared.base.errors import InputError, NoisyPlan
from shared.base.settings import Settings
from simulations import study
from simulations.commands import settings_from
from simulations.run import Simulation, run_simulation
from simulations.seed_bootstrap import crossed_estimates
from simulations.study import StudyRun, run_study, seeds_of, varied
from simulations.study_table import study_table
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]


@pytest.fixture
def two(write_platform: Write) -> World:
    """Two platforms of the same items."""
    for place, name in enumerate(("one", "other")):
        write_platform(name, seed=place, users=40, extra='keys = "id"\ncolumns = { key = "item" }')
    return open_world(write_platform("third", seed=5, users=40, extra='keys = "id"\ncolumns = { key = "item" }').parent)


def settings_for(words: Sequence[str]) -> Settings:
    return settings_from(None, list(words))


def test_what_is_there_is_not_run_again_and_what_is_new_is(two: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []

    def begins(run: StudyRun, done: int) -> None:
        began.append(run.name)

    runs = [StudyRun(values=values, seed=seed) for values in varied(["privacy.epsilon=8,50"]) for seed in (0, 1)]

    # Interrupted in its second run.
    whole = run_simulation

    def stopping(plan: Simulation, **over: Any) -> dict[str, Any]:
        if len(began) == 2:
            raise KeyboardInterrupt
        return whole(plan, **over)

    monkeypatch.setattr(study, "run_simulation", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_study(two, tmp_path / "out", runs[:2], settings_for, begins=begins)
    monkeypatch.setattr(study, "run_simulation", whole)
    first = run_study(two, tmp_path / "out", runs[:2], settings_for, begins=begins)
    assert began == [runs[0].name, runs[1].name, runs[1].name]
    found = run_study(two, tmp_path / "out", runs, settings_for, begins=begins)
    assert began[3:] == [runs[2].name, runs[3].name] and not found.refused
    assert [one for one in found.figures if one.values == {"privacy.epsilon": "8"}] == list(first.figures)

    own = {(one.platform, one.model, one.metric, one.values["privacy.epsilon"]): one for one in found.figures}
    for figure in found.figures:
        assert figure.estimate.low <= figure.estimate.value <= figure.estimate.high and set(figure.by_seed) == {0, 1}
        assert figure.estimate.value == pytest.approx(np.mean(list(figure.by_seed.values())))
    # Each seed's mean is that of the run's own metrics.
    for run in runs:
        folder = tmp_path / "out" / "runs" / run.name
        metrics = json.loads((folder / "metrics.json").read_text())["platforms"]
        for platform, result in metrics.items():
            mine = own[platform, "own", "ndcg@10", run.values["privacy.epsilon"]].by_seed[run.seed]
            assert mine == pytest.approx(result["own"]["ndcg@10"], abs=1e-6)
            users = pl.read_parquet(folder / "users" / f"{platform}.parquet")
            assert users["own ndcg@10"].mean() == pytest.approx(result["own"]["ndcg@10"], abs=1e-6)
        assert not list(folder.glob("state/*/trunk"))

    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert len(rows) == len(found.figures) and set(rows[0]) >= {
        "privacy.epsilon",
        "platform",
        "model",
        "metric",
        "value",
        "low",
        "high",
    }
    assert json.loads((tmp_path / "out" / "results.json").read_text())["figures"][0]["by_seed"].keys() == {"0", "1"}
    assert study_table(found).row_count == 2 * 3
    with pytest.raises(InputError, match="began otherwise"):
        run_study(two, tmp_path / "out", runs, lambda words: settings_for([*words, "preferences.items=7"]))


def test_a_plan_that_is_noise_is_refused_unless_that_is_wanted(
    two: World, tiny_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    noisy = {"rounds": 1, "privacy": {"epsilon": 0.05, "prior_noise_multiplier": 200.0}}
    with pytest.raises(NoisyPlan, match="accept_noise"):
        run_simulation(Simulation(world=two, settings=tiny_settings(**noisy), out=tmp_path / "refused"))
    noisy["privacy"] = {**noisy["privacy"], "accept_noise": True}  # type: ignore[dict-item]
    metrics = run_simulation(Simulation(world=two, settings=tiny_settings(**noisy), out=tmp_path / "run"))
    for result in metrics["platforms"].values():
        assert result["signal_to_noise"] < 1 and 0 < result["epsilon"] <= 0.05
    with pytest.raises(InputError, match="simulations only"):
        tiny_settings(simulation=False, privacy={"accept_noise": True, "generator": "secure"})


def test_refused_runs_are_named_and_the_others_are_shown(two: World, tmp_path: Path) -> None:
    runs = [StudyRun(values=values, seed=0) for values in varied(["privacy.epsilon=0.002,50"])]
    found = run_study(two, tmp_path / "out", runs, settings_for)
    assert list(found.refused) == [runs[0].name]
    assert {one.values["privacy.epsilon"] for one in found.figures} == {"50"}


def test_the_commands(two: World, tmp_path: Path) -> None:
    out = str(tmp_path / "seeds")
    shown = CliRunner().invoke(
        fedfuse.app, ["simulate", str(two.folder), "--seeds", "0..1", "--out", out], env={"COLUMNS": "200"}
    )
    assert shown.exit_code == 0, shown.output
    assert "fused - own" in shown.stdout and "run 2 of 2" in shown.stderr
    swept = [
        "sweep",
        str(two.folder),
        "--over",
        "privacy.epsilon=8,50",
        "--seeds",
        "0",
        "--out",
        str(tmp_path / "sweep"),
        "--json",
    ]
    again = CliRunner().invoke(fedfuse.app, swept)
    assert again.exit_code == 0, again.output
    assert {row["privacy.epsilon"] for row in json.loads(again.stdout)["figures"]} == {"8", "50"}
    single = ["simulate", str(two.folder), "--per-user", "--out", str(tmp_path / "single")]
    assert CliRunner().invoke(fedfuse.app, single).exit_code == 0
    assert {path.stem for path in (tmp_path / "single" / "users").iterdir()} == {"one", "other", "third"}


@pytest.mark.parametrize("text", ["", "x", "3..1", "-1", "0..99999999", "0..9999999999999999999999"])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(InputError, match="no seeds"):
        seeds_of(text)


@pytest.mark.parametrize("over", [["rank"], ["model.rank="], ["seed=1,2"], ["a=1", "a=2"]])
def test_what_cannot_be_varied(over: list[str]) -> None:
    with pytest.raises(InputError, match="--over"):
        varied(over)


def test_names_of_runs_are_names_of_folders() -> None:
    names = [StudyRun(values={"model.backbone": path}, seed=0).name for path in ("/a/b", "/a_b", "x" * 300)]
    assert len(set(names)) == 3 and all("/" not in name and len(name) < 100 for name in names)


class TestCrossedIntervals:
    def test_of_one_seed_it_is_the_users(self) -> None:
        values = np.random.default_rng(0).normal(0.2, 1.0, (1, 4000))
        found, error = crossed_estimates([values])[0], values.std() / np.sqrt(4000)
        assert found.value == pytest.approx(values.mean())
        assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)

    def test_seeds_that_differ_widen_it(self) -> None:
        random = np.random.default_rng(1)
        noise = random.normal(0.0, 1.0, (8, 500))
        still, moved = crossed_estimates([noise, noise + random.normal(0.0, 1.0, (8, 1))])
        assert moved.high - moved.low > 3 * (still.high - still.low)
        # About what the means of eight seeds allow.
        assert moved.high - moved.low == pytest.approx(2 * 1.96 / np.sqrt(8), rel=0.5)

    def test_users_who_were_not_held_out_are_left_out(self) -> None:
        values = np.array([[1.0, np.nan], [np.nan, 0.0], [1.0, 0.0]])
        assert crossed_estimates([values])[0].value == 0.5
