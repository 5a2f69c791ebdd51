"""A symmetric matrix of preferences as the vector that is released, and back.

One user's matrix x x' / |x|^2 has Frobenius norm 1 whatever is in x. The vector of its diagonal and of sqrt(2) times the part
above it has that norm too, so one user moves a sum of such vectors by at most 1, whatever the length of the history.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def triangle_size(items: int) -> int:
    """Numbers of the vector.

    >>> triangle_size(3)
    6
    """
    return items * (items + 1) // 2


def packed(matrix: Floats) -> Floats:
    """The vector of a symmetric matrix, row by row of its upper triangle, of the matrix's Frobenius norm.

    >>> packed(np.array([[1.0, 2.0], [2.0, 3.0]])).round(3).tolist()
    [1.0, 2.828, 3.0]
    """
    upper = np.triu_indices(len(matrix))
    vector: Floats = matrix[upper] * np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
    return vector


def unpacked(vector: Floats, items: int) -> Floats:
    """The matrix of a vector, (items, items).

    Raises:
        ValueError: the vector is of another number of items.

    >>> unpacked(packed(np.array([[1.0, 2.0], [2.0, 3.0]])), 2).round(12).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    if vector.shape != (triangle_size(items),):
        raise ValueError(f"{vector.shape} numbers for the preferences of {items} items")
    matrix = np.zeros((items, items))
    upper = np.triu_indices(items)
    matrix[upper] = vector / np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
    matrix += np.triu(matrix, 1).T
    return matrix
