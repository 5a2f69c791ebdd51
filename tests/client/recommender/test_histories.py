"""Products of histories with sparse matrices: those of whole matrices, whatever is asked of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from client.recommender.histories import columns_of, dense_product, product_at


def drawn(seed: int, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.integers(1, 9, (rows, columns)) * (random.random((rows, columns)) < 0.3)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(1, 12), st.lists(st.integers(0, 8), max_size=12))
def test_products_are_those_of_whole_matrices(seed: int, rows: int, width: int, columns: list[int]) -> None:
    left, matrix, some = drawn(seed, rows, width), drawn(seed + 1, width, 9), np.array(columns, np.int64)
    whole = left @ matrix
    found = dense_product(csr_matrix(left), csr_matrix(matrix))
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(product_at(csr_matrix(left), csr_matrix(matrix), some), whole[:, some])
    np.testing.assert_array_equal(columns_of(csr_matrix(matrix), some), matrix[:, some])
    assert found.dtype == np.float32


def test_entries_that_are_named_twice_count_twice() -> None:
    twice = csr_matrix((np.array([1.0, 2.0], np.float32), np.array([3, 3]), np.array([0, 2])), shape=(1, 5))
    np.testing.assert_array_equal(columns_of(twice, np.array([3, 0])), [[3.0, 0.0]])
    np.testing.assert_array_equal(product_at(twice, csr_matrix(np.eye(5, dtype=np.float32)), np.array([3])), [[3.0]])
