"""The secure sum end to end: platforms of files, workers, messenger, coordinator, all but the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from client.run.secure_session import SecureSession
from server.monitoring.run_events import Event, Kind
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]


@pytest.fixture
def world(write_platform: Write) -> Callable[[int], World]:
    def make(count: int, *, one_catalogue: bool = False) -> World:
        for seed in range(count):
            path = write_platform(f"p{seed}", seed=seed, items=8 if one_catalogue else 8 + seed, users=12)
        return open_world(path.parent)

    return make


@pytest.fixture
def secure(tiny_settings: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def make(**over: Any) -> Settings:
        values = {"strategy": "secure-sum", "rounds": 3, "secure": {"threshold": 0.6, "colluders": 0}}
        return tiny_settings(**{**values, "privacy": {"noise": "distributed"}, **over})

    return make


def run(world: World, settings: Settings, out: Path, *, stop: int = 0, **over: Any) -> tuple[dict[str, Any], list[Event]]:
    told: list[Event] = []

    def watch(event: Event) -> None:
        told.append(event)
        if stop and event.kind is Kind.ROUND and event.round == stop:
            raise KeyboardInterrupt

    plan = Simulation(world=world, settings=settings, out=out, **over)
    return run_simulation(plan, events=watch), told


def model(out: Path) -> dict[str, Any]:
    return {**load_file(out / "model" / "adapter_model.safetensors"), **load_file(out / "model" / "head.safetensors")}


def test_a_run_its_ledgers_and_the_same_run_interrupted(world: Any, secure: Make, tmp_path: Path) -> None:
    made, settings = world(3), secure()
    metrics, told = run(made, settings, tmp_path / "straight")
    assert [event.kind for event in told].count(Kind.SECURED) == 1
    assert Kind.ABANDONED not in [event.kind for event in told]
    for name, platform in metrics["platforms"].items():
        assert platform["rounds"] == 3
        assert platform["own"]
        entries = read_ledger(tmp_path / "straight" / "ledger" / f"{name}.jsonl").entries
        assert [(str(entry.kind), entry.round) for entry in entries] == [
            ("popularity", 0),
            ("train", 1),
            ("train", 2),
            ("train", 3),
        ]
        assert all(entry.release.integers is not None for entry in entries[1:])
        assert entries[-1].epsilon <= platform["budget"] == 50.0
    assert audit_run(tmp_path / "straight").ok
    with pytest.raises(KeyboardInterrupt):
        run(made, settings, tmp_path / "broken", stop=1)
    run(made, settings, tmp_path / "broken", resume=True)
    straight, resumed = model(tmp_path / "straight"), model(tmp_path / "broken")
    assert straight.keys() == resumed.keys()
    assert all((straight[name] == resumed[name]).all() for name in straight)
    assert any(value.any() for name, value in straight.items() if "lora_B" in name)
    assert audit_run(tmp_path / "broken").ok


def test_platforms_of_one_catalogue_pool_its_popularity(world: Any, secure: Make, tmp_path: Path) -> None:
    made, settings = world(3, one_catalogue=True), secure()
    metrics, told = run(made, settings, tmp_path / "straight")
    assert [event.text for event in told if event.kind is Kind.SECURED][1] == "3 platforms summed the popularity of 8 items"
    for name, platform in metrics["platforms"].items():
        entries = read_ledger(tmp_path / "straight" / "ledger" / f"{name}.jsonl").entries
        assert [(str(entry.kind), entry.round) for entry in entries][:2] == [("popularity", 0), ("train", 1)]
        assert all(entry.release.integers is not None for entry in entries)
        assert entries[-1].epsilon <= platform["budget"] == 50.0
    assert audit_run(tmp_path / "straight").ok
    with pytest.raises(KeyboardInterrupt):
        run(made, settings, tmp_path / "broken", stop=1)
    run(made, settings, tmp_path / "broken", resume=True)
    straight, resumed = model(tmp_path / "straight"), model(tmp_path / "broken")
    assert all((straight[name] == resumed[name]).all() for name in straight)


@pytest.mark.parametrize(
    ("over", "kind", "number"),
    [({}, Kind.SECURED, 2), ({}, Kind.ANSWERED, 5), ({"strategy": "preferences", "rounds": 0}, Kind.ANSWERED, 2)],
    ids=["popularities are summed", "the first evaluation", "the sum of preferences"],
)
def test_interrupted_before_the_first_checkpoint_it_goes_on_with_the_keys_that_were_dealt(
    world: Any, secure: Make, tmp_path: Path, over: dict[str, Any], kind: Kind, number: int
) -> None:
    """A full disk, or a kill, that early ended the run for good: new keys were dealt, and every platform refused them."""
    made, settings = world(3, one_catalogue=True), secure(**over)
    run(made, settings, tmp_path / "straight")
    before: list[Kind] = []

    def stop(event: Event) -> None:
        before.append(event.kind)
        if before.count(kind) == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_simulation(Simulation(world=made, settings=settings, out=tmp_path / "broken"), events=stop)
    assert not (tmp_path / "broken" / "checkpoint.safetensors").exists()
    _, told = run(made, settings, tmp_path / "broken", resume=True)
    assert Kind.REFUSED not in [event.kind for event in told]
    for path in (tmp_path / "straight" / "model").glob("*.safetensors"):
        straight, resumed = load_file(path), load_file(tmp_path / "broken" / "model" / path.name)
        assert straight.keys() == resumed.keys() and all((straight[name] == resumed[name]).all() for name in straight)
    assert audit_run(tmp_path / "broken").ok


def test_without_enough_counts_a_run_goes_on_without_popularity(
    world: Any, secure: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SecureSession.count

    def breaking(self: SecureSession, request: Any) -> Any:
        if self.run.platform.name in ("p0", "p1"):
            raise RuntimeError("u17")
        return honest(self, request)

    monkeypatch.setattr(SecureSession, "count", breaking)
    metrics, told = run(world(4, one_catalogue=True), secure(), tmp_path / "run")
    (given_up,) = [event.text for event in told if event.kind is Kind.ABANDONED]
    assert given_up.startswith("popularities are given up: 2 masked vectors, 3 are needed")
    assert [platform["rounds"] for platform in metrics["platforms"].values()] == [3] * 4
    rounds = {
        name: [entry.round for entry in read_ledger(tmp_path / "run" / "ledger" / f"{name}.jsonl").entries]
        for name in metrics["platforms"]
    }
    # Whoever masked its counts has paid for them, though nobody will ever see them.
    assert rounds == {"p0": [1, 2, 3], "p1": [1, 2, 3], "p2": [0, 1, 2, 3], "p3": [0, 1, 2, 3]}
    assert audit_run(tmp_path / "run").ok


def test_popularity_of_one_that_is_left_is_not_summed(
    write_platform: Write, secure: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four have one catalogue, and one of the two breaks: the sum would be the other's popularity."""
    paths = [write_platform(f"p{at}", seed=at, items=items, users=12) for at, items in enumerate((8, 8, 9, 10))]
    honest = SecureSession.count

    def breaking(self: SecureSession, request: Any) -> Any:
        if self.run.platform.name == "p0":
            raise RuntimeError("u17")
        return honest(self, request)

    monkeypatch.setattr(SecureSession, "count", breaking)
    metrics, told = run(open_world(paths[0].parent), secure(), tmp_path / "run")
    (given_up,) = [event.text for event in told if event.kind is Kind.ABANDONED]
    assert given_up.startswith("popularities are given up: 1 platforms with catalogue")
    assert [platform["rounds"] for platform in metrics["platforms"].values()] == [3] * 4
    assert audit_run(tmp_path / "run").ok


@pytest.mark.parametrize("phase", ["sum", "secure"])
def test_what_platforms_paid_for_a_round_that_is_given_up_stays_paid(
    world: Any, secure: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Two of four platforms break in round 2: before their vectors are masked, or when they are asked for shares."""
    honest = getattr(SecureSession, phase)

    def breaking(self: SecureSession, request: Any) -> Any:
        if request.round == 2 and self.run.platform.name in ("p0", "p1"):
            if phase == "sum":
                honest(self, request)  # charged and masked, and lost on the way
            raise RuntimeError("u17")
        return honest(self, request)

    monkeypatch.setattr(SecureSession, phase, breaking)
    metrics, told = run(world(4), secure(), tmp_path / "run")
    assert [event.round for event in told if event.kind is Kind.ABANDONED] == [2]
    assert [platform["rounds"] for platform in metrics["platforms"].values()] == [2] * 4
    for name in metrics["platforms"]:
        entries = read_ledger(tmp_path / "run" / "ledger" / f"{name}.jsonl").entries
        assert [entry.round for entry in entries] == [0, 1, 2, 3]
    assert audit_run(tmp_path / "run").ok


def test_one_of_four_is_lost_and_the_round_goes_on(
    world: Any, secure: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SecureSession.sum

    def breaking(self: SecureSession, request: Any) -> Any:
        if request.round == 2 and self.run.platform.name == "p3":
            raise RuntimeError("u17")
        return honest(self, request)

    monkeypatch.setattr(SecureSession, "sum", breaking)
    metrics, told = run(world(4), secure(strategy="ffa"), tmp_path / "run")
    assert not [event for event in told if event.kind is Kind.ABANDONED]
    assert [platform["rounds"] for platform in metrics["platforms"].values()] == [3, 3, 3, 2]
    assert [entry.round for entry in read_ledger(tmp_path / "run" / "ledger" / "p3.jsonl").entries] == [0, 1, 3]
    assert audit_run(tmp_path / "run").ok
