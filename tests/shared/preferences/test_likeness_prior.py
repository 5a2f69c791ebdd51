"""The posterior mean of a noised sum: against a dense Gaussian posterior over all pairs, and at its ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import InputError
from shared.preferences.likeness_prior import MOST_FACTORS, likeness_kernel, posterior_factors
from shared.preferences.packing import packed, unpacked


def cosines_of(items: int, seed: int) -> np.ndarray:
    vectors = np.abs(np.random.default_rng(seed).normal(size=(items, 3)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found: np.ndarray = vectors @ vectors.T
    return found


def drawn(kernel: np.ndarray, seed: int) -> np.ndarray:
    """A sum as the prior has it, c = 1."""
    root, items = np.linalg.cholesky(kernel), len(kernel)
    return root @ unpacked(np.random.default_rng(seed).normal(size=items * (items + 1) // 2), items) @ root.T


def noise_of(items: int, noise: float, seed: int) -> np.ndarray:
    return noise * unpacked(np.random.default_rng(seed).normal(size=items * (items + 1) // 2), items)


def positive(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    found: np.ndarray = (vectors * np.maximum(values, 0)) @ vectors.T
    return found


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
    cosines = cosines_of(items, seed)
    noised = drawn(cosines + np.eye(items), seed) + noise_of(items, noise, seed + 1)
    kernel = likeness_kernel(noised, cosines, noise=noise)
    factors = posterior_factors(noised, cosines, noise=noise).astype(np.float64)
    # c is one of a grid: some c there explains what was found.
    grid = np.exp(np.linspace(-8, 12, 41)) * noise**2 / float(np.linalg.eigvalsh(kernel).mean()) ** 2
    found = factors.T @ factors
    differences = [np.abs(positive(dense_mean(noised, kernel, scale, noise)) - found).max() for scale in grid]
    assert min(differences) < 1e-4 * max(1.0, np.abs(noised).max())


def test_the_scale_is_found_where_there_is_enough_to_see() -> None:
    """Of a sum that the prior drew, factors are of its own scale rather than of one that is five times less or more."""
    cosines, noise, items = cosines_of(60, 1), 0.5, 60
    noised = noise_of(items, noise, 6)
    noised += drawn(likeness_kernel(noised, cosines, noise=noise), 5)
    kernel = likeness_kernel(noised, cosines, noise=noise)
    # Popularity is read in the sum itself, so that its mean, and with it the scale, is 1 to begin with.
    factors = posterior_factors(noised, cosines, noise=noise).astype(np.float64)
    values, vectors = np.linalg.eigh(kernel)

    def mean(scale: float) -> np.ndarray:
        products = scale * np.outer(values, values)
        return positive(vectors @ (products / (products + noise**2) * (vectors.T @ noised @ vectors)) @ vectors.T)

    errors = [np.abs(mean(scale) - factors.T @ factors).max() for scale in (0.2, 1.0, 5.0)]
    assert errors[1] == min(errors)


def test_words_that_say_who_is_like_whom_bring_the_sum_nearer() -> None:
    """The same noised sum, read with what the items have in common and with the words of others."""
    cosines, noise, items = np.kron(np.eye(10), np.ones((6, 6))), 1.0, 60
    truth = positive(drawn(cosines + 0.01 * np.eye(items), 2))
    noised = truth + noise_of(items, noise, 3)
    order = np.random.default_rng(4).permutation(items)
    errors = {}
    for name, words in (("own", cosines), ("others'", cosines[np.ix_(order, order)])):
        factors = posterior_factors(noised, words, noise=noise).astype(np.float64)
        errors[name] = float(np.linalg.norm(factors.T @ factors - truth))
    assert errors["own"] < 0.8 * errors["others'"]


def test_the_kernel_by_hand() -> None:
    """Without noise nothing is denoised away: cosines of the sum's own factors count a fifth."""
    rows = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    cosines = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    kernel = likeness_kernel(rows.T @ rows, cosines, noise=0.0)
    popular = np.array([1.0, 1.0, 4.0]) / 2
    expected = cosines + 0.2 * np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]]) + 0.3 * np.eye(3)
    np.testing.assert_allclose(kernel, np.sqrt(np.outer(popular, popular)) * expected, atol=1e-6)


def test_popularity_under_the_noise_is_the_noise() -> None:
    kernel = likeness_kernel(np.diag([-50.0, 0.0, 6.0]), np.zeros((3, 3)), noise=2.0)
    assert kernel[0, 0] == pytest.approx(kernel[1, 1]) and kernel[2, 2] > 4 * kernel[1, 1] * (1 - 1e-6)
    assert likeness_kernel(np.zeros((0, 0)), np.zeros((0, 0)), noise=1.0).shape == (0, 0)
    assert np.isfinite(likeness_kernel(np.zeros((2, 2)), np.zeros((2, 2)), noise=0.0)).all()


def test_without_noise_nothing_is_taken_off() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 5))
    factors = posterior_factors(rows.T @ rows, np.eye(5), noise=0.0)
    np.testing.assert_allclose(factors.T @ factors, rows.T @ rows, atol=1e-4)
    assert (np.diff(np.linalg.norm(factors, axis=1)) <= 1e-6).all()


def test_the_strongest_are_kept_where_there_are_many() -> None:
    values = np.arange(1.0, MOST_FACTORS + 10)
    factors = posterior_factors(np.diag(values), np.eye(len(values)), noise=0.0)
    assert len(factors) == MOST_FACTORS and float(factors[0] @ factors[0]) == pytest.approx(values[-1], rel=1e-5)


def test_single_precision_says_nearly_the_same() -> None:
    cosines = cosines_of(30, 3)
    noised = drawn(cosines + np.eye(30), 3) + noise_of(30, 0.5, 4)
    one, other = (posterior_factors(noised.astype(kind), cosines, noise=0.5) for kind in (np.float64, np.float32))
    np.testing.assert_allclose(one.T @ one, other.T @ other, atol=1e-3)


@pytest.mark.parametrize("place", ["noised", "cosines"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(place: str, value: float) -> None:
    given = {"noised": np.eye(3), "cosines": np.eye(3)}
    given[place][1, 1] = value
    with pytest.raises(InputError, match="not finite"):
        posterior_factors(given["noised"], given["cosines"], noise=1.0)


def test_its_ends() -> None:
    assert posterior_factors(np.zeros((0, 0)), np.zeros((0, 0)), noise=1.0).shape == (0, 0)
    assert posterior_factors(np.zeros((4, 4)), np.eye(4), noise=1.0).shape == (0, 4)
    assert posterior_factors(-np.eye(4), np.eye(4), noise=1.0).shape == (0, 4)
