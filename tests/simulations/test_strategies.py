"""Every strategy in a real federation of tiny platforms: what it sends, what it leaves, and that it can be taken up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.outcome import Event, Kind
from shared.audit import audit
from shared.errors import InputError, PrivacyError
from shared.peft_export import load_published
from shared.settings import Settings
from simulations.run import Simulation, simulate
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


def run(world: World, settings: Settings, out: Path, **over: Any) -> dict[str, Any]:
    return simulate(Simulation(world=world, settings=settings, out=out, alone=False, **{k: v for k, v in over.items() if k != "events"}),
                    events=over.get("events"))  # fmt: skip


@pytest.mark.parametrize("strategy", SENT)
def test_a_run_ends_with_a_model_that_loads_and_is_the_same_after_an_interruption(
    strategy: str, three: World, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(rounds=3, strategy=strategy, training={"local_steps": 1})
    straight = run(three, settings, tmp_path / "straight")
    per_round = {name: platform["bytes_up"] / 3 for name, platform in straight["platforms"].items()}
    for sent in per_round.values():
        assert 4 * SENT[strategy] < sent < 4 * SENT[strategy] + 1500  # names and facts beside the numbers
    assert audit(tmp_path / "straight").ok
    published = load_published(tmp_path / "straight" / "model")
    products = [
        published.adapter[name] @ published.adapter[name.replace("lora_B", "lora_A")]
        for name in published.adapter
        if name.endswith("lora_B")
    ]
    # Under fedsa B stays on the platforms, so the published model alone changes nothing.
    assert all(product.any() == (strategy != "fedsa") for product in products)

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
