"""The secure sum end to end: platforms of files, workers, messenger, coordinator, all but the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.outcome import Event, Kind
from shared.audit import audit
from shared.settings import Settings
from simulations.run import Simulation, simulate
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]


@pytest.fixture
def three(write_platform: Write) -> World:
    for seed, name in enumerate(("books", "shop", "video")):
        path = write_platform(name, seed=seed, items=10 + seed)
    return open_world(path.parent)


@pytest.fixture
def secure(tiny_settings: Make) -> Make:
    def make(**over: Any) -> Settings:
        return tiny_settings(**{"strategy": "secure-sum", "rounds": 3, "privacy": {"noise": "distributed"}, **over})

    return make


def run(world: World, settings: Settings, out: Path, **over: Any) -> dict[str, Any]:
    told: list[Event] = []
    metrics = simulate(Simulation(world=world, settings=settings, out=out, alone=False, **over), events=told.append)
    metrics["events"] = told
    return metrics


def test_a_whole_run(three: World, secure: Make, tmp_path: Path) -> None:
    metrics = run(three, secure(), tmp_path / "run")
    for event in metrics["events"]:
        print(event.kind, event.text)
    print(metrics)
    assert audit(tmp_path / "run").ok
    assert any(event.kind is Kind.SECURED for event in metrics["events"])
