"""Every strategy in a real federation of tiny platforms: what it sends, what it leaves, and that it can be taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.monitoring.run_events import Event, Kind
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.ledger.reading import read_ledger
from shared.model.peft_export import load_published
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]
# The tiny BERT: 2 trained layers x (query, value), 32 wide, and the head; rank 2.
SENT = {
    "fedavg": 5 * (32 + 32) * 2,
    "ffa": 5 * 32 * 2,
    "rolora": 5 * 32 * 2,
    "fedsa": 5 * 32 * 2,
    "fedsb": 5 * 2 * 2,
    "flora": 5 * (32 + 32) * 2,
    "exact": 5 * (32 + 32) * 2,
    "svd": 5 * (32 + 32) * 2,
    "ffa+median+fedavgm": 5 * 32 * 2,
    "fedadam": 5 * (32 + 32) * 2,
}


@pytest.fixture
def three(write_platform: Write) -> World:
    for seed, name in enumerate(("books", "shop", "video")):
        path = write_platform(name, seed=seed, users=20, declared=25)
    return open_world(path.parent)


def run(world: World, settings: Settings, out: Path, *, events: Any = None, **over: Any) -> dict[str, Any]:
    return run_simulation(Simulation(world=world, settings=settings, out=out, **over), events=events)


@pytest.mark.parametrize("strategy", SENT)
def test_a_run_sends_what_it_says_and_ends_with_a_model_that_loads(
    strategy: str, three: World, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(rounds=2, strategy=strategy, training={"local_steps": 1})
    straight = run(three, settings, tmp_path / "straight")
    per_round = {name: platform["bytes_up"] / 2 for name, platform in straight["platforms"].items()}
    for sent in per_round.values():
        assert (
            4 * SENT[strategy] < sent < 4 * SENT[strategy] + 2500
        )  # beside the numbers names and facts, and what joining and evaluating say
    assert audit_run(tmp_path / "straight").ok
    published = load_published(tmp_path / "straight" / "model")
    products = [
        published.adapter[name] @ published.adapter[name.replace("lora_B", "lora_A")]
        for name in published.adapter
        if name.endswith("lora_B")
    ]
    # Under fedsa B stays on the platforms, so the published model alone changes nothing.
    assert all(product.any() == (strategy != "fedsa") for product in products)


@pytest.mark.parametrize("strategy", ["exact", "rolora+fedadam", "fedsa+median"])
def test_a_run_is_the_same_after_an_interruption(strategy: str, three: World, tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(rounds=3, strategy=strategy, training={"local_steps": 1})
    straight = run(three, settings, tmp_path / "straight")

    def stop(event: Event) -> None:
        if event.kind is Kind.ROUND and event.round == 2:
            raise KeyboardInterrupt

    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        run(three, settings, out, events=stop)
    resumed = run(three, settings, out, resume=True)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        one, other = load_file(tmp_path / "straight" / "model" / name), load_file(out / "model" / name)
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    for name, platform in straight["platforms"].items():
        assert resumed["platforms"][name]["federated"] == platform["federated"]
        assert resumed["platforms"][name]["epsilon"] == platform["epsilon"]


@pytest.mark.parametrize("strategy", ["ffa+personalise", "svd+personalise"])
def test_personalising_comes_after_the_last_round_and_costs_no_more_than_the_budget(
    strategy: str, three: World, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(rounds=2, strategy=strategy, training={"local_steps": 1}, personal={"steps": 2})
    told: list[tuple[Kind, int]] = []
    metrics = run(three, settings, tmp_path / "run", events=lambda event: told.append((event.kind, event.round)))
    assert (Kind.PERSONALISED, 2) in told and told.index((Kind.PERSONALISED, 2)) > told.index((Kind.ROUND, 2))
    for name, platform in metrics["platforms"].items():
        assert 0.74 * 50 < platform["epsilon"] <= platform["budget"] == 50.0
        assert platform["personal_chosen"] in (True, False)
        # Whoever kept the global model ranks as it does; whoever did not has a model of its own.
        if not platform["personal_chosen"]:
            assert platform["personal"] == platform["federated"]
        kinds = [(str(entry.kind), entry.round) for entry in read_ledger(tmp_path / "run" / "ledger" / f"{name}.jsonl").entries]
        assert kinds == [("popularity", 0), ("train", 1), ("train", 2), ("train", 3), ("evaluate", 3)]
    assert audit_run(tmp_path / "run").ok


def test_without_it_the_federation_plans_with_the_whole_budget(three: World, tiny_settings: Make, tmp_path: Path) -> None:
    for name, least in (("ffa", 48.0), ("ffa+personalise", 36.0)):
        settings = tiny_settings(rounds=1, strategy=name, training={"local_steps": 1}, personal={"steps": 1})
        told: list[float] = []

        def joined(event: Event, told: list[float] = told) -> None:
            told.extend(tally.joined.planned_epsilon for tally in event.tallies.values() if event.kind is Kind.JOINED)

        run(three, settings, tmp_path / name.replace("+", "-"), events=joined)
        assert all(least < planned <= least / 0.96 for planned in told)


def test_under_distributed_noise_what_cannot_be_summed_is_refused_at_start(
    three: World, tiny_settings: Make, tmp_path: Path
) -> None:
    for strategy in ("exact", "flora", "svd", "ffa+median", "krum"):
        settings = tiny_settings(strategy=strategy, privacy={"noise": "distributed"})
        with pytest.raises(InputError, match="secure sum"):
            run(three, settings, tmp_path / strategy.replace("+", "-"))


def test_platforms_of_different_rank(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    """4, 8 and 16 as each platform can afford; the published model has the run's rank."""
    for seed, (name, rank) in enumerate((("books", 4), ("shop", 8), ("video", None))):
        path = write_platform(name, seed=seed, users=20, declared=25)
        if rank:
            path.write_text(path.read_text().replace("users = 25", f"users = 25\nrank = {rank}"))
    targets = {"rank": 16, "targets": "intermediate,output", "layers": 1}
    settings = tiny_settings(strategy="svd", model=targets, training={"local_steps": 1})
    metrics = run(open_world(path.parent), settings, tmp_path / "run")
    sent = {name: platform["bytes_up"] for name, platform in metrics["platforms"].items()}
    whole = 2 * 4 * ((48 + 32) + (48 + 32) + (32 + 32))  # bytes of rank 1 over both rounds
    for name, rank in (("books", 4), ("shop", 8), ("video", 16)):
        assert rank * whole < sent[name] < rank * whole + 3500  # and settings, receipts, hashes
    published = load_published(tmp_path / "run" / "model")
    assert {min(array.shape) for array in published.adapter.values()} == {16}
    assert audit_run(tmp_path / "run").ok
