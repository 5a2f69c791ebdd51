"""The posterior mean of a noised sum: against a dense Gaussian posterior over all pairs, and at its ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import InputError
from shared.preferences.likeness_prior import MOST_FACTORS, likeness_kernel, posterior_factors
from shared.preferences.packing import packed, unpacked


def kernel_of(items: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    vectors = np.abs(random.normal(size=(items, 3)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return likeness_kernel(vectors @ vectors.T, random.exponential(size=items), noise=0.2)


def noised_of(kernel: np.ndarray, noise: float, seed: int) -> np.ndarray:
    random, items = np.random.default_rng(seed), len(kernel)
    root = np.linalg.cholesky(kernel)
    drawn = root @ unpacked(random.normal(size=items * (items + 1) // 2), items) @ root.T
    return drawn + noise * unpacked(random.normal(size=items * (items + 1) // 2), items)


def dense_mean(noised: np.ndarray, kernel: np.ndarray, scale: float, noise: float) -> np.ndarray:
    """By the covariance of all pairs, written out: Cov(M_ij, M_kl) = c (K_ik K_jl + K_il K_jk) / 2."""
    items = len(kernel)
    pairs = [(i, j) for i in range(items) for j in range(i, items)]
    weight = np.array([1.0 if i == j else np.sqrt(2) for i, j in pairs])
    prior = np.array([[kernel[i, k] * kernel[j, m] + kernel[i, m] * kernel[j, k] for k, m in pairs] for i, j in pairs])
    prior *= scale / 2 * np.outer(weight, weight)
    mean = prior @ np.linalg.solve(prior + noise**2 * np.eye(len(pairs)), packed(noised))
    return unpacked(mean, items)


@given(seed=st.integers(0, 10_000), items=st.integers(1, 6), noise=st.sampled_from([0.05, 0.5, 3.0]))
def test_it_is_the_mean_of_a_gaussian_posterior(seed: int, items: int, noise: float) -> None:
    kernel = kernel_of(items, seed)
    noised = noised_of(kernel, noise, seed)
    factors = posterior_factors(noised, kernel, noise=noise).astype(np.float64)
    found = factors.T @ factors
    # c is one of a grid: some c there explains what was found.
    grid = np.exp(np.linspace(-8, 12, 41)) * noise**2 / float(np.linalg.eigvalsh(kernel).mean()) ** 2
    differences = []
    for scale in grid:
        values, vectors = np.linalg.eigh(dense_mean(noised, kernel, scale, noise))
        differences.append(np.abs((vectors * np.maximum(values, 0)) @ vectors.T - found).max())
    assert min(differences) < 1e-4 * max(1.0, np.abs(noised).max())


def test_the_scale_is_found_where_there_is_enough_to_see() -> None:
    """Of a sum that the prior drew, the mean is nearer to it than with a prior that says ten times less or more."""
    kernel, noise = kernel_of(60, 1), 0.5
    random, root = np.random.default_rng(5), np.linalg.cholesky(kernel_of(60, 1))
    truth = root @ unpacked(random.normal(size=1830), 60) @ root.T
    noised = truth + noise * unpacked(random.normal(size=1830), 60)
    values, vectors = np.linalg.eigh(kernel)

    def error(matrix: np.ndarray) -> float:
        left, turned = np.linalg.eigh(truth - matrix)
        return float(np.linalg.norm((turned * left) @ turned.T))

    def mean(scale: float) -> np.ndarray:
        products = scale * np.outer(values, values)
        return vectors @ (products / (products + noise**2) * (vectors.T @ noised @ vectors)) @ vectors.T

    assert error(mean(1.0)) < min(error(mean(0.1)), error(mean(10.0)))
    factors = posterior_factors(noised, kernel, noise=noise).astype(np.float64)
    positive = [np.linalg.eigh(mean(scale)) for scale in (0.2, 1.0, 5.0)]
    errors = [np.abs((vectors * np.maximum(values, 0)) @ vectors.T - factors.T @ factors).max() for values, vectors in positive]
    assert errors[1] == min(errors)


def test_without_noise_nothing_is_taken_off() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 5))
    factors = posterior_factors(rows.T @ rows, np.eye(5), noise=0.0)
    np.testing.assert_allclose(factors.T @ factors, rows.T @ rows, atol=1e-4)
    lengths = np.linalg.norm(factors, axis=1)
    assert (np.diff(lengths) <= 1e-6).all()


def test_the_strongest_are_kept_where_there_are_many() -> None:
    values = np.arange(1.0, MOST_FACTORS + 10)
    factors = posterior_factors(np.diag(values), np.eye(len(values)), noise=0.0)
    assert len(factors) == MOST_FACTORS and float(factors[0] @ factors[0]) == pytest.approx(values[-1], rel=1e-5)


def test_half_precision_of_the_sum_says_nearly_the_same() -> None:
    kernel = kernel_of(30, 3)
    noised = noised_of(kernel, 0.5, 3)
    one, other = (posterior_factors(noised.astype(kind), kernel, noise=0.5) for kind in (np.float64, np.float32))
    assert other.dtype == np.float32
    np.testing.assert_allclose(one.T @ one, other.T @ other, atol=1e-3)


def test_popularity_under_the_noise_is_the_noise() -> None:
    kernel = likeness_kernel(np.eye(3), np.array([-50.0, 0.0, 6.0]), noise=2.0)
    assert kernel[0, 0] == pytest.approx(kernel[1, 1]) and kernel[2, 2] == pytest.approx(4 * kernel[1, 1])
    assert likeness_kernel(np.zeros((0, 0)), np.zeros(0), noise=1.0).shape == (0, 0)
    assert np.isfinite(likeness_kernel(np.zeros((2, 2)), np.zeros(2), noise=0.0)).all()


@pytest.mark.parametrize("place", ["noised", "kernel"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(place: str, value: float) -> None:
    given = {"noised": np.eye(3), "kernel": np.eye(3)}
    given[place][1, 1] = value
    with pytest.raises(InputError, match="not finite"):
        posterior_factors(given["noised"], given["kernel"], noise=1.0)


def test_its_ends() -> None:
    assert posterior_factors(np.zeros((0, 0)), np.zeros((0, 0)), noise=1.0).shape == (0, 0)
    assert posterior_factors(np.zeros((4, 4)), np.eye(4), noise=1.0).shape == (0, 4)
    assert posterior_factors(-np.eye(4), np.eye(4), noise=1.0).shape == (0, 4)
