"""Denoised preferences: what the noise hides is left out, and what rises above it comes back at its size."""

from __future__ import annotations

import numpy as np
import pytest

from shared.preferences.denoising import noise_edge, preference_factors
from shared.preferences.packing import unpacked
from shared.preferences.sum_kind import triangle_size


def noise_of(items: int, noise: float, seed: int) -> np.ndarray:
    return unpacked(np.random.default_rng(seed).normal(0.0, noise, triangle_size(items)), items)


def test_without_noise_the_factors_are_exact() -> None:
    rows = np.random.default_rng(0).random((5, 30))
    factors = preference_factors(rows.T @ rows, noise=0.0)
    assert factors.shape == (5, 30) and factors.dtype == np.float32
    np.testing.assert_allclose(factors.T @ factors, rows.T @ rows, rtol=1e-5)
    assert (np.diff(np.linalg.norm(factors, axis=1)) <= 0).all()
    assert preference_factors(rows.T @ rows, noise=0.0, most=2).shape == (2, 30)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_has_next_to_no_factors(seed: int) -> None:
    noised = noise_of(200, 0.7, seed)
    assert np.linalg.eigvalsh(noised).max() == pytest.approx(noise_edge(200, 0.7), rel=0.1)
    assert len(preference_factors(noised, noise=0.7)) <= 2


def test_what_stands_out_comes_back_at_its_size() -> None:
    direction = np.ones(300) / np.sqrt(300)
    found = []
    for seed in range(10):
        edge = noise_edge(300, 0.5)
        noised = 3 * edge * np.outer(direction, direction) + noise_of(300, 0.5, seed)
        first = preference_factors(noised, noise=0.5)[0].astype(float)
        found.append(first @ first / (3 * edge))
        assert abs(first @ direction) / np.linalg.norm(first) > 0.95
    assert np.mean(found) == pytest.approx(1.0, abs=0.01)


def test_it_is_nearer_to_the_truth_than_what_was_released() -> None:
    rows = np.random.default_rng(1).random((4, 120)) * np.array([[3.0], [1.5], [1.0], [0.2]])
    truth = rows.T @ rows
    noised = truth + noise_of(120, 1.0, 2)
    factors = preference_factors(noised, noise=1.0).astype(float)
    assert np.linalg.norm(factors.T @ factors - truth) < 0.4 * np.linalg.norm(noised - truth)


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), -np.eye(4), np.zeros((0, 0))])
def test_nothing_is_no_factor(matrix: np.ndarray) -> None:
    assert preference_factors(matrix, noise=0.1).shape == (0, len(matrix))
