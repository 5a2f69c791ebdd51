"""Products of histories with sparse matrices: those of whole matrices, whatever is asked of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from client.recommender.histories import MetEntries


def drawn(seed: int, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.integers(1, 9, (rows, columns)) * (random.random((rows, columns)) < 0.3)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.lists(st.integers(0, 8), max_size=9, unique=True))
def test_what_each_item_adds_is_its_row_of_the_matrix(seed: int, width: int, columns: list[int]) -> None:
    history, matrix, some = drawn(seed, 1, width), drawn(seed + 1, width, 9), np.array(columns, np.int64)
    met = MetEntries.of(csr_matrix(history), csr_matrix(matrix))
    there = np.flatnonzero(history[0])
    np.testing.assert_array_equal(met.total(), (history @ matrix)[0])
    np.testing.assert_array_equal(met.by_item(some), (history[0, there, None] * matrix[there])[:, some])
    assert met.total().dtype == met.by_item(some).dtype == np.float32


def test_entries_that_are_named_twice_count_twice() -> None:
    matrix = csr_matrix((np.array([1.0, 2.0], np.float32), np.array([3, 3]), np.array([0, 2])), shape=(1, 5))
    met = MetEntries.of(csr_matrix(np.ones((1, 1), np.float32)), matrix)
    np.testing.assert_array_equal(met.total(), [0.0, 0.0, 0.0, 3.0, 0.0])
    np.testing.assert_array_equal(met.by_item(np.array([3, 0])), [[3.0, 0.0]])
