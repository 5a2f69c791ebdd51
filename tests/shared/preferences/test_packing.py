"""The vector of a matrix of preferences: its norm, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.preferences import packing
from shared.preferences.packing import packed, unpacked
from shared.preferences.sum_kind import triangle_size


@given(st.integers(0, 9), st.integers(0, 99))
def test_it_keeps_the_norm_and_comes_back(items: int, seed: int) -> None:
    half = np.random.default_rng(seed).normal(size=(items, items))
    matrix = half + half.T
    vector = packed(matrix)
    assert vector.shape == (triangle_size(items),)
    assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(matrix))
    np.testing.assert_allclose(unpacked(vector, items), matrix, atol=1e-12)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_one_users_vector_has_norm_one(likes: list[bool]) -> None:
    x = np.asarray(likes, float)
    if x.any():
        assert np.linalg.norm(packed(np.outer(x, x) / (x @ x))) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [0, 5, 7])
def test_another_number_of_items_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="preferences of 3 items"):
        unpacked(np.zeros(size), 3)


@pytest.mark.parametrize("items", [3, 4, 5, 8, 11])
def test_a_matrix_of_several_blocks_is_symmetric_and_what_was_packed(monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    monkeypatch.setattr(packing, "_AT_ONCE", 4)
    matrix = np.random.default_rng(items).normal(size=(items, items))
    np.testing.assert_allclose(unpacked(packed(matrix + matrix.T), items), matrix + matrix.T, atol=1e-12)
