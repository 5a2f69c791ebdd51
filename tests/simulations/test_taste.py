"""A taste map end to end: what is published is the sum over platforms that have no item in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config.platform_file import load
from client.model.prepared_platform import read_rows
from client.privacy.taste_release import taste_of
from client.recommender.frozen_texts import frozen_item_vectors
from client.recommender.own_evaluation import evaluate_platform
from server.registry.pull import pull_model
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from shared.preferences.taste_directions import item_directions
from shared.preferences.taste_map import FILE, TasteMap, load_taste_map
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]
DIRECTIONS = 6


@pytest.fixture
def asked(tiny_settings: Make) -> Make:
    def make(**over: Any) -> Settings:
        alone = {"strategy": "preferences", "rounds": 0, "preferences": {"items": 0, "map": DIRECTIONS}}
        return tiny_settings(**{**alone, **over})

    return make


@pytest.fixture
def world(write_platform: Write) -> World:
    """Three platforms, each of another catalogue."""
    for at, name in enumerate(("north", "south", "west")):
        path = write_platform(name, seed=at, users=20 + at, items=12 + at)
    return open_world(path.parent)


def run(world: World, settings: Settings, out: Path) -> TasteMap | None:
    run_simulation(Simulation(world=world, settings=settings, out=out))
    found = out / "model" / FILE
    return load_taste_map(found) if found.exists() else None


def exact(world: World, settings: Settings, cache: Path) -> np.ndarray:
    """The formula, user by user."""
    total = np.zeros((DIRECTIONS, DIRECTIONS))
    for path in world.platforms:
        rows = read_rows(load(path), settings)
        vectors = frozen_item_vectors(rows.file, rows.tables, settings.model, cache=cache / rows.name)
        for user in range(rows.split.users):
            total += taste_of(item_directions(vectors, DIRECTIONS)[np.unique(rows.split.train[user])])
    return total


def kinds(out: Path) -> dict[str, list[str]]:
    return {path.stem: [str(entry.kind) for entry in read_ledger(path).entries] for path in (out / "ledger").glob("*.jsonl")}


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_without_noise_it_is_the_sum_of_the_formula(world: World, asked: Make, tmp_path: Path, noise: str) -> None:
    settings = asked(privacy={"epsilon": math.inf, "noise": noise})
    found = run(world, settings, tmp_path / "run")
    assert found is not None and found.noise == 0.0 and found.users == 3 * 40
    truth = exact(world, settings, tmp_path / "cache")
    assert np.linalg.norm(truth) > 1
    np.testing.assert_allclose(found.matrix, truth, atol=0.06)


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_it_is_charged_once_and_audited(world: World, asked: Make, tmp_path: Path, noise: str) -> None:
    out = tmp_path / "run"
    found = run(world, asked(privacy={"epsilon": 5.0, "noise": noise}), out)
    assert found is not None and found.noise > 0
    assert kinds(out) == {name: ["taste"] for name in ("north", "south", "west")}
    for path in (out / "ledger").glob("*.jsonl"):
        assert read_ledger(path).entries[-1].epsilon <= 5.0
    assert not [problem for one in audit_run(out).platforms for problem in one.problems]


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_it_comes_before_training_and_takes_its_share(world: World, asked: Make, tmp_path: Path, noise: str) -> None:
    strategy, out = ("fedavg" if noise == "local" else "secure-sum"), tmp_path / "run"
    settings = asked(strategy=strategy, rounds=1, privacy={"noise": noise, "epsilon": 50.0})
    assert run(world, settings, out) is not None
    assert all(value in (["taste", "popularity", "train"], ["popularity", "taste", "train"]) for value in kinds(out).values())
    for path in (out / "ledger").glob("*.jsonl"):
        assert read_ledger(path).entries[-1].epsilon <= 50.0


def test_a_pulled_map_serves_a_platform_with_other_items(world: World, asked: Make, tmp_path: Path) -> None:
    settings = asked(privacy={"epsilon": math.inf, "noise": "local"})
    run(world, settings, tmp_path / "run")
    pull_model(str(tmp_path / "run" / "model"), tmp_path / "pulled", unsigned=True)
    file = load(next(path for path in world.platforms if path.stem == "west"))
    found = evaluate_platform(file, model=tmp_path / "pulled", seed=0, cache=tmp_path / "cache")
    (all_users,) = (segment for name, segment in found.comparison.segments.items() if name == "all")
    assert set(all_users.quality) == {"own", "global", "fused"}


def test_the_cards_code_runs_with_numpy_alone(world: World, asked: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(world, asked(privacy={"epsilon": math.inf, "noise": "local"}), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    width = load_taste_map(folder / FILE).width
    np.save(folder / "items.npy", np.random.default_rng(0).normal(size=(30, width)).astype(np.float32))
    monkeypatch.chdir(folder)
    made: dict[str, Any] = {}
    exec(code, made)
    assert made["scores"].shape == (30,) and np.isfinite(made["scores"]).all()
    # The product computes the same.
    from client.recommender.taste import TasteOnItems

    taste = TasteOnItems.of(
        item_directions(np.load("items.npy"), DIRECTIONS), load_taste_map(folder / FILE).matrix.astype(np.float64)
    )
    expected = (taste.directions[[0, 1]] @ taste.directions.T + taste.seen[[0, 1]] @ taste.matrix @ taste.seen.T).mean(0)
    np.testing.assert_allclose(made["scores"], expected, atol=1e-4)
