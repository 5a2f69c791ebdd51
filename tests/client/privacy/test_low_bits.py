"""The attack on the low bits of noise (Mironov 2012), on everything that a platform noises by itself.

The attacker knows all rows but one user's, so both sums that a release may be of, and asks which of them leaves a residual that
the generator can have drawn. Noise drawn in float32 and added in float64 is told from any other residual for certain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.evaluation.private_metrics import metric_sums
from client.privacy.bounded_sum import BoundedSum, of_choices
from client.privacy.mechanism import CountMechanism, Mechanism
from client.privacy.noise_sources import SecureNoise
from client.privacy.release_plan import metrics_mechanism
from client.training.per_user_gradients import clip
from shared.base.settings import Settings
from shared.privacy.releases import ReleaseKind

Sums = tuple[NDArray[np.float64], NDArray[np.float64]]
"""With the user and without, (width,) each."""
Release = Callable[[], NDArray[np.float64]]


def of_float32(residual: NDArray[np.float64], noise: float) -> NDArray[np.bool_]:
    """Which residuals are a float32 times the noise's deviation, up to the rounding of the sum."""
    drawn = residual / noise
    return np.abs(drawn.astype(np.float32).astype(np.float64) - drawn) <= 2.0**-49 * np.maximum(1.0, np.abs(residual)) / noise


def of_grid(residual: NDArray[np.float64], noise: float) -> NDArray[np.bool_]:
    """Which residuals are whole multiples of a fine power of two: what other generators of floats leave."""
    return np.abs(residual * 2.0**24 - np.rint(residual * 2.0**24)) < 1e-9


def advantage(release: Release, sums: Sums, noise: float, *, trials: int = 60) -> float:
    """How much more often a coordinate is explained by the sum that is true than by its neighbour; 1 tells them apart."""
    found = []
    for explains in (of_float32, of_grid):
        hits = np.zeros(2)
        moved = np.abs(sums[0] - sums[1]) > 1e-12
        for _ in range(trials):
            left = release()
            hits += [explains(left - total, noise)[moved].mean() for total in sums]
        found.append(abs(hits[0] - hits[1]) / trials)
    return max(found)


def floats(total: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
    """As it once was: float32 normals, scaled in float64, on a float64 sum."""
    return total + noise * torch.randn(len(total)).double().numpy()


def metrics(users: int) -> BoundedSum:
    rank = 1.0 + np.arange(300) % 57
    return metric_sums(rank[:users], np.full(users, 1000))


def likes(users: int) -> BoundedSum:
    random = np.random.default_rng(0)
    return of_choices([random.integers(0, 400, 20).astype(np.int32) for _ in range(300)][:users], width=400, most=20)


def gradients(users: int) -> BoundedSum:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(120, 200)).astype(np.float32))[:users]
    return clip({"w": rows}, torch.ones(users, dtype=torch.bool), STEP)


STEP = Mechanism(users=1000, sample_rate=0.1, clip=1e-3, noise_multiplier=1.0, dimension=200)
METRICS = metrics_mechanism(Settings(), users=500, group_size=1, private=True)
LIKES = CountMechanism(kind=ReleaseKind.POPULARITY, noise_multiplier=3.0, dimension=400)
KINDS: dict[str, tuple[Callable[[int], BoundedSum], int, float, Callable[[BoundedSum], NDArray[np.float64]]]] = {
    "metrics": (metrics, 300, METRICS.point.noise, lambda total: METRICS.privatise(total, SecureNoise())),
    "popularity": (likes, 300, LIKES.point.noise, lambda total: LIKES.privatise(total, SecureNoise())),
    "local updates": (
        gradients,
        120,
        STEP.point.noise,
        lambda total: STEP.privatise(total, SecureNoise())[0]["w"].double().numpy() * STEP.expected_batch,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_neighbours_explain_every_answer_alike(kind: str) -> None:
    make, users, noise, privatise = KINDS[kind]
    sums = make(users).vector(), make(users - 1).vector()
    assert advantage(lambda: privatise(make(users)), sums, noise) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_attack_tells_noise_of_floats(kind: str) -> None:
    make, users, noise, _ = KINDS[kind]
    sums = make(users).vector(), make(users - 1).vector()
    assert advantage(lambda: floats(sums[0], noise), sums, noise) > 0.5
