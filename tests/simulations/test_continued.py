"""Training that goes on from an earlier run: its adapter is the first one, and what its platforms spent counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.registry.publication import MODEL
from server.run.starting_adapter import starting_adapter
from shared.base.errors import FedfuseError, InputError
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from shared.model.adapter import adapter_digest
from shared.model.peft_export import load_published
from simulations.run import Simulation, run_simulation
from simulations.run_folder import LEDGERS
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]


@pytest.fixture
def world(write_platform: Write) -> World:
    for seed, name in enumerate(("shop", "video")):
        path = write_platform(name, seed=seed, extra="[federation]\nmaximum_epsilon_per_run = 20.0\n")
    return open_world(path.parent)


@pytest.fixture
def first(world: World, tiny_settings: Make, tmp_path: Path) -> Path:
    out = tmp_path / "first"
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=out))
    return out


def spent(run: Path, name: str = "shop") -> float:
    return read_ledger(run / LEDGERS / f"{name}.jsonl").epsilon


def test_it_begins_with_the_adapter_and_the_ledgers(
    world: World, first: Path, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulations import run as simulation

    began: list[Any] = []
    real = simulation.run_federation

    def watched(**asked: Any) -> Any:
        began.append(asked["start"])
        return real(**asked)

    monkeypatch.setattr(simulation, "run_federation", watched)
    out = tmp_path / "second"
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=out, earlier=first))
    published = load_published(first / MODEL).adapter
    assert adapter_digest(began[0]) == adapter_digest(published)
    assert adapter_digest(load_published(out / MODEL).adapter) != adapter_digest(published)
    assert adapter_digest(published) in (out / MODEL / "README.md").read_text() or any(
        adapter_digest(published) in path.read_text() for path in (out / MODEL).glob("*.json")
    )
    before = (first / LEDGERS / "shop.jsonl").read_bytes()
    assert (out / LEDGERS / "shop.jsonl").read_bytes().startswith(before)
    assert spent(first) < spent(out) <= 50.0
    assert audit_run(out).ok


def test_what_does_not_fit_is_said_before_there_is_a_folder(
    world: World, first: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    for over, words in (
        ({"model": {"rank": 3}}, "model.rank: "),
        ({"strategy": "ffa"}, "draws its own factors"),
        ({"strategy": "preferences", "rounds": 0}, "begins from none"),
    ):
        with pytest.raises(InputError, match=words):
            run_simulation(Simulation(world=world, settings=tiny_settings(**over), out=tmp_path / "second", earlier=first))
    with pytest.raises(InputError, match=r"no fedfuse\.json"):
        run_simulation(Simulation(world=world, settings=tiny_settings(), out=tmp_path / "second", earlier=tmp_path / "nothing"))
    (tmp_path / "preferences" / MODEL).mkdir(parents=True)
    with pytest.raises(InputError, match="trained no adapter"):
        run_simulation(
            Simulation(world=world, settings=tiny_settings(), out=tmp_path / "second", earlier=tmp_path / "preferences")
        )
    assert not (tmp_path / "second").exists()


def test_a_spent_budget_is_not_spent_again(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    """Without `maximum_epsilon_per_run` the first run takes all of it, and the second leaves nothing behind."""
    world = open_world(write_platform("shop").parent)
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=tmp_path / "first"))
    assert spent(tmp_path / "first") > 49
    with pytest.raises(FedfuseError):
        run_simulation(Simulation(world=world, settings=tiny_settings(), out=tmp_path / "second", earlier=tmp_path / "first"))
    assert not (tmp_path / "second").exists()


def test_two_within_one_second_are_two_runs(
    world: World, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.run_folder.time.time", lambda: 1_795_906_721.5)
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=tmp_path / "first"))
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=tmp_path / "second", earlier=tmp_path / "first"))
    assert spent(tmp_path / "first") < spent(tmp_path / "second")


def test_an_interrupted_one_goes_on_from_where_it_began(world: World, first: Path, tiny_settings: Make, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "second"
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=whole, earlier=first))

    def stop(event: Any) -> None:
        if event.kind == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_simulation(Simulation(world=world, settings=tiny_settings(), out=out, earlier=first), events=stop)
    run_simulation(Simulation(world=world, settings=tiny_settings(), out=out, resume=True))
    for name, value in load_published(whole / MODEL).adapter.items():
        np.testing.assert_array_equal(load_published(out / MODEL).adapter[name], value)


def test_a_model_that_was_altered_is_refused(first: Path, tiny_settings: Make, tmp_path: Path) -> None:
    shutil.copytree(first / MODEL, tmp_path / "model")
    (tmp_path / "model" / "adapter_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="cannot be read"):
        starting_adapter(tmp_path / "model", tiny_settings())
