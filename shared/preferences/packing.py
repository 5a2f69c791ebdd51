"""A symmetric matrix of preferences as the vector that is released, and back.

One user's matrix x x' / |x|^2 has Frobenius norm 1 whatever is in x. The vector of its diagonal and of sqrt(2) times the part
above it has that norm too, so one user moves a sum of such vectors by at most 1, whatever the length of the history.

Both ways go by some rows at a time: beside the vector and the matrix themselves next to nothing is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from shared.preferences.sum_kind import triangle_size

Floats = NDArray[np.float64]
Sparse: TypeAlias = scipy.sparse.csr_matrix

_AT_ONCE = 256
"""Rows."""
_DOUBLE = 2048
"""Items up to which a matrix is computed with in float64; one of more takes half the memory."""


def packed(matrix: Floats) -> Floats:
    """The vector of a symmetric matrix, row by row of its upper triangle, of the matrix's Frobenius norm.

    >>> packed(np.array([[1.0, 2.0], [2.0, 3.0]])).round(3).tolist()
    [1.0, 2.828, 3.0]
    """
    vector = np.empty(triangle_size(len(matrix)))
    for row, place in _rows(len(matrix)):
        _pack(matrix[row, row:], vector[place])
    return vector


def packed_product(rows: Sparse) -> Floats:
    """The vector of R'R without the matrix.

    Args:
        rows: R, (n, items).

    >>> packed_product(scipy.sparse.csr_matrix([[1.0, 1.0], [0.0, 2.0]])).round(3).tolist()
    [1.0, 1.414, 5.0]
    """
    items = rows.shape[1]
    columns = rows.tocsc()
    vector = np.empty(triangle_size(items))
    places = dict(_rows(items))
    for start in range(0, items, _AT_ONCE):
        block = (columns[:, start : start + _AT_ONCE].T @ columns[:, start:]).toarray()
        for row, products in enumerate(block):
            _pack(products[row:], vector[places[start + row]])
    return vector


def subtract_products(vector: Floats, left: Floats, right: Floats) -> None:
    """Take the vector of left right' + right left' from a vector, in place.

    Args:
        vector: (triangle_size(items),).
        left, right: (items,).

    >>> vector = packed(np.array([[1.0, 2.0], [2.0, 3.0]]))
    >>> subtract_products(vector, np.array([1.0, 0.0]), np.array([0.5, 2.0]))
    >>> vector.round(3).tolist()
    [0.0, 0.0, 3.0]
    """
    for row, place in _rows(len(left)):
        both = left[row] * right[row:] + right[row] * left[row:]
        both[1:] *= math.sqrt(2)
        vector[place] -= both


def unpacked(vector: Floats, items: int, *, single: bool = False) -> Floats:
    """The matrix of a vector, (items, items).

    Args:
        single: float32, for half of the memory.

    Raises:
        ValueError: the vector is of another number of items.

    >>> unpacked(packed(np.array([[1.0, 2.0], [2.0, 3.0]])), 2).round(12).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    if vector.shape != (triangle_size(items),):
        raise ValueError(f"{vector.shape} numbers for the preferences of {items} items")
    matrix: Floats = np.empty((items, items), np.float32 if single else np.float64)
    for row, place in _rows(items):
        matrix[row, row:] = vector[place] / math.sqrt(2)
        matrix[row, row] = vector[place.start]
    for start in range(0, items, _AT_ONCE):
        stop = min(start + _AT_ONCE, items)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        for row in range(start, stop):
            matrix[row, start:row] = matrix[start:row, row]
    return matrix


def working_matrix(vector: Floats, items: int) -> Floats:
    """`unpacked`, in the precision that is computed with: float64, or float32 of many items."""
    return unpacked(vector, items, single=items > _DOUBLE)


def diagonal_of(vector: Floats, items: int) -> Floats:
    """The diagonal of the matrix, (items,).

    >>> diagonal_of(packed(np.array([[1.0, 2.0], [2.0, 3.0]])), 2).tolist()
    [1.0, 3.0]
    """
    return vector[[place.start for _, place in _rows(items)]]


def _rows(items: int) -> Iterator[tuple[int, slice]]:
    """Every row, and the place of its part of the upper triangle in the vector."""
    start = 0
    for row in range(items):
        yield row, slice(start, start + items - row)
        start += items - row


def _pack(upper: Floats, out: Floats) -> None:
    """A row from its diagonal on."""
    np.multiply(upper, math.sqrt(2), out=out)
    out[0] = upper[0]
