"""Sums of low-rank products against the matrices themselves, which only the tests form."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model.low_rank_sums import ProductSum

sizes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(0, 999))


def summed(out: int, inner: int, ranks: list[int], seed: int) -> tuple[ProductSum, np.ndarray]:
    random = np.random.default_rng(seed)
    total, full = ProductSum(out, inner), np.zeros((out, inner))
    for rank in ranks:
        b, a, weight = random.normal(size=(out, rank)), random.normal(size=(rank, inner)), random.normal()
        total.add(b, a, weight=weight)
        full += weight * b @ a
    return total, full


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_the_factors_give_the_sum(size: tuple[int, int, list[int], int]) -> None:
    out, inner, ranks, seed = size
    total, full = summed(out, inner, ranks, seed)
    b, a = total.factors()
    np.testing.assert_allclose(b @ a, full, atol=1e-10)
    assert b.shape[1] == a.shape[0] <= min(out, inner, sum(ranks))
    assert total.rank <= 2 * min(out, inner) + max(ranks)


@settings(max_examples=50, deadline=None)
@given(sizes)
def test_the_spectrum_is_that_of_the_matrix(size: tuple[int, int, list[int], int]) -> None:
    out, inner, ranks, seed = size
    total, full = summed(out, inner, ranks, seed)
    spectrum = total.spectrum()
    wanted = np.linalg.svd(full, compute_uv=False)
    np.testing.assert_allclose(spectrum.values, wanted[: len(spectrum.values)], atol=1e-9)
    assert (wanted[len(spectrum.values) :] < 1e-9).all()
    count = len(spectrum.values)
    np.testing.assert_allclose(spectrum.left.T @ spectrum.left, np.eye(count), atol=1e-9)
    np.testing.assert_allclose(spectrum.right @ spectrum.right.T, np.eye(count), atol=1e-9)


def test_what_cancels_leaves_nothing() -> None:
    random = np.random.default_rng(0)
    b, a = random.normal(size=(6, 2)), random.normal(size=(2, 9))
    total = ProductSum(6, 9)
    for weight in (0.3, 0.7, -1.0):
        total.add(b, a, weight=weight)
    assert total.factors()[0].shape == (6, 0)
    assert ProductSum(6, 9).factors()[1].shape == (0, 9)


def test_scaling_leaves_the_original() -> None:
    total, full = summed(4, 7, [2, 3], 1)
    b, a = total.scaled(0.25).factors()
    np.testing.assert_allclose(b @ a, full / 4, atol=1e-12)
    np.testing.assert_allclose(np.matmul(*total.factors()), full, atol=1e-12)
    assert ProductSum(4, 7).scaled(3.0).rank == 0


def test_the_full_matrix_is_never_formed() -> None:
    """A map of 40,000 x 30,000 would take 9.6 GB; its sum of three rank-4 products takes a thousandth."""
    out, inner = 40_000, 30_000
    random = np.random.default_rng(0)
    tracemalloc.start()
    total = ProductSum(out, inner)
    for _ in range(3):
        total.add(random.normal(size=(out, 4)), random.normal(size=(4, inner)))
    b, a = total.factors()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (b.shape, a.shape) == ((out, 12), (12, inner))
    assert peak < 100e6 < out * inner * 8 / 90


@pytest.mark.parametrize(("out", "inner"), [(12, 30), (30, 12), (12, 12)])
def test_memory_does_not_grow_with_what_is_added(out: int, inner: int) -> None:
    random = np.random.default_rng(0)
    total, full = ProductSum(out, inner), np.zeros((out, inner))
    for _ in range(200):
        b, a = random.normal(size=(out, 4)), random.normal(size=(4, inner))
        total.add(b, a)
        full += b @ a
        assert total.rank <= 2 * 12
    np.testing.assert_allclose(np.matmul(*total.factors()), full, atol=1e-9)
