"""Early stopping end to end: noised and charged evaluations end training, and what was not trained is not charged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.monitoring.run_events import Event, Kind
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from shared.privacy.releases import ReleaseKind
from simulations.run import Simulation, run_simulation
from simulations.run_folder import LEDGERS
from simulations.terminal import metrics_table
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]
WAYS: dict[str, dict[str, Any]] = {
    "local": {},
    "distributed": {
        "strategy": "secure-sum",
        "secure": {"threshold": 0.6, "colluders": 0},
        "privacy": {"noise": "distributed"},
    },
}


@pytest.fixture
def world(write_platform: Write) -> World:
    for seed, name in enumerate(("shop", "video", "news")):
        path = write_platform(name, seed=seed, items=8 + seed, users=12)
    return open_world(path.parent)


def run(world: World, settings: Settings, out: Path, **over: Any) -> tuple[dict[str, Any], list[Event]]:
    told: list[Event] = []
    stop = over.pop("stop", 0)

    def watch(event: Event) -> None:
        told.append(event)
        if stop and event.kind is Kind.EVALUATED and event.round == stop:
            raise KeyboardInterrupt

    return run_simulation(Simulation(world=world, settings=settings, out=out, **over), events=watch), told


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_trained_is_not_charged(way: str, world: World, tiny_settings: Make, tmp_path: Path) -> None:
    """Twelve users a platform: the known noise of their figures is larger than any rise, so patience ends it."""
    settings = tiny_settings(rounds=6, evaluate_every=1, patience=2, **WAYS[way])
    metrics, told = run(world, settings, tmp_path / "run")
    said = "stopped after round 2 of 6: no improvement beyond noise for 2 evaluations, since before the first round"
    assert metrics["rounds"] == 2 and metrics["stopped"]["why"] == said
    assert [event.text for event in told if event.kind is Kind.PLATEAU] == [said]
    assert not metrics["exact"] and "noised evaluations" in str(metrics_table(metrics).title)
    planned = {event.platform: event.tallies[event.platform].joined for event in told if event.kind is Kind.JOINED}
    facts = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert facts["stopped"] == {"round": 2, "rounds": 6, "best": 0, "evaluations": 2}
    steps = 2 * settings.round_steps
    for name, platform in metrics["platforms"].items():
        assert [one["round"] for one in platform["per_round"]] == [0, 1, 2]
        ledger = read_ledger(tmp_path / "run" / LEDGERS / f"{name}.jsonl")
        charged = [(entry.kind, entry.round) for entry in ledger.entries]
        assert [at for kind, at in charged if kind is ReleaseKind.TRAIN] == [1, 2]
        assert [at for kind, at in charged if kind is ReleaseKind.EVALUATE] == [0, 1, 2]
        assert platform["epsilon"] == ledger.epsilon < planned[name].planned_epsilon <= 50
        (fact,) = [one for one in facts["platforms"] if one["name"] == name]
        assert (fact["epsilon"], fact["rounds"]) == (ledger.epsilon, 2)
        assert (fact["released"]["train"], fact["released"]["evaluate"]) == (steps, 3)
        assert not fact["federated"]["exact"]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"| rounds | 2 count; {said} |" in card and "| noised |" in card
    assert audit_run(tmp_path / "run").ok


def test_interrupted_before_it_decided_it_decides_the_same(world: World, tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(rounds=6, evaluate_every=1, patience=2)
    straight, _ = run(world, settings, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(world, settings, tmp_path / "broken", stop=2)
    resumed, told = run(world, settings, tmp_path / "broken", resume=True)
    assert Kind.ROUND not in [event.kind for event in told]
    for key in ("rounds", "stopped"):
        assert resumed[key] == straight[key]
    for name, platform in straight["platforms"].items():
        assert [resumed["platforms"][name][key] for key in ("epsilon", "per_round")] == [
            platform[key] for key in ("epsilon", "per_round")
        ]


def test_a_run_that_gets_better_goes_on(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    """Everybody goes through the catalogue in one order, which training learns; without privacy any rise is beyond noise."""
    rows = [f"u{user},i{(user + step) % 12},{1_700_000_000 + 1000 * user + step}" for user in range(48) for step in range(5)]
    for name in ("shop", "video"):
        path = write_platform(name, users=48, declared=48, files={f"{name}-events.csv": "\n".join(["user,item,time", *rows])})
    settings = tiny_settings(
        rounds=3,
        evaluate_every=1,
        patience=1,
        training={"local_steps": 12, "learning_rate": 0.02, "targets": 1},
        privacy={"epsilon": float("inf")},
    )
    metrics, told = run(open_world(path.parent), settings, tmp_path / "run")
    assert (metrics["rounds"], metrics["stopped"]) == (3, None)
    assert Kind.PLATEAU not in [event.kind for event in told]
    rises = [event.text for event in told if event.kind is Kind.EVALUATED][1:-1]
    assert len(rises) == 2 and all("beyond the noise of 0.0000" in text for text in rises)
    assert "| rounds | 3 |" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_without_patience_evaluations_are_exact_and_free(world: World, tiny_settings: Make, tmp_path: Path) -> None:
    metrics, _ = run(world, tiny_settings(rounds=3, evaluate_every=1), tmp_path / "run")
    assert metrics["exact"] and (metrics["rounds"], metrics["stopped"]) == (3, None)
    for name in metrics["platforms"]:
        entries = read_ledger(tmp_path / "run" / LEDGERS / f"{name}.jsonl").entries
        assert ReleaseKind.EVALUATE not in [entry.kind for entry in entries]


def test_whoever_personalises_does_so_after_an_early_stop(world: World, tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(rounds=5, evaluate_every=1, patience=2, strategy="ffa+personalise", personal={"steps": 2})
    metrics, told = run(world, settings, tmp_path / "run")
    assert metrics["rounds"] == 2 and Kind.PERSONALISED in [event.kind for event in told]
    for name, platform in metrics["platforms"].items():
        assert platform["personal_chosen"] is not None, name
        assert platform["epsilon"] <= 50
    assert audit_run(tmp_path / "run").ok
