"""The benchmark of integer noise compares two sides that add as much noise to the same sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from client.config.platform_file import load
from client.model.prepared_platform import prepare, read_rows
from client.privacy import mechanism
from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import SecureNoise
from shared.privacy.releases import ReleaseKind
from shared.secagg.fixed_point import FixedPoint
from simulations.benchmarks.noise.adapters import adapter_cost, float_noise
from simulations.benchmarks.noise.integers import (
    FLOATS,
    INTEGERS,
    SIDES,
    NoiseCost,
    cost_table,
    noise_cost,
    quality_table,
    releasing_settings,
)
from simulations.commands import settings_from


@pytest.mark.parametrize("side", SIDES)
def test_both_sides_add_the_noise_of_the_mechanism(side: str) -> None:
    total = BoundedSum(parts={"sum": torch.full((50_000,), 7.0, dtype=torch.float64)}, bound=1.0)
    mechanism = CountMechanism(kind=ReleaseKind.PREFERENCES, noise_multiplier=3.0, dimension=50_000)
    left = SIDES[side](total, mechanism, 1) - 7.0
    assert left.mean() == pytest.approx(0, abs=0.08) and left.std() == pytest.approx(3.0, rel=0.04)
    # Integer noise lies on a grid, that of floats on none.
    steps = left * mechanism.point.scale
    assert bool((np.abs(steps - np.rint(steps)) < 1e-6).all()) is (side == INTEGERS)


def test_a_small_platform(write_platform: Callable[..., Path]) -> None:
    rows = read_rows(load(write_platform(users=40, items=12)), releasing_settings(6))
    cost = noise_cost(rows, items=6, epsilon=8.0, seeds=range(2))
    assert all(len(cost.quality[side]) == 2 and min(cost.quality[side]) > 0 for side in SIDES)
    assert all(set(sides) == set(SIDES) and min(sides.values()) > 0 for sides in cost.seconds.values())
    assert cost_table([cost]).row_count == 1 + len(cost.seconds) + 1


def test_the_ratio_and_its_error() -> None:
    cost = NoiseCost(epsilon=8.0, quality={INTEGERS: [0.11, 0.09], FLOATS: [0.2, 0.2]}, seconds={}, sums=0.0)
    ratio, error = cost.ratio
    assert (ratio, error) == (pytest.approx(0.5), pytest.approx(0.05))


def test_float_noise_is_as_large_as_the_mechanisms() -> None:
    point = FixedPoint.own(dimension=50_000, clip=2.0, noise_multiplier=3.0)
    left = float_noise(np.full(50_000, 7.0), point, SecureNoise()) - 7.0
    assert left.mean() == pytest.approx(0, abs=0.15) and left.std() == pytest.approx(6.0, rel=0.04)


def test_an_adapter_is_trained_with_either(write_platform: Callable[..., Path], tiny_bert: str) -> None:
    path = write_platform(users=40, items=12)
    words = [f"model.backbone={tiny_bert}", "model.layers=2", "model.rank=2", "rounds=1", "training.local_steps=1"]
    words += ["model.item_tokens=12", "model.user_tokens=24", "training.sample_rate=0.5"]
    settings = settings_from(None, words)
    platform = prepare(load(path), settings, cache=path.parent / "cache")
    drawn = mechanism._noised
    cost = adapter_cost(path, platform, epsilon="50", seeds=[0, 1], words=words)
    assert all(len(values) == 2 and min(values) > 0 for values in cost.quality.values())
    assert cost.quality[INTEGERS] != cost.quality[FLOATS] and mechanism._noised is drawn
    assert quality_table([cost], title="adapters").row_count == 1
