"""Sums of low-rank products, kept as factors: the full matrix is never formed.

sum_i w_i B_i A_i = [w_1 B_1 ... w_n B_n] [A_1; ...; A_n], so a sum of products is one product of stacked factors, of rank
at most R, the sum of the ranks. QR of the two stacks and the SVD of an R x R core give its singular values in O((k + d) R^2)
instead of O(k d min(k, d)) (FlexLoRA, Bai et al. 2024, forms the matrix; this is the same result without it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]

_KEPT = 1e-12
"""Singular values below this part of the terms' summed norms are what float64 leaves of an exact zero."""


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """A matrix by its singular values: U diag(S) V, S falling, only those that are not zero.

    Args:
        left: float64 (k, R), orthonormal columns.
        values: float64 (R,).
        right: float64 (R, d), orthonormal rows.
    """

    left: Matrix
    values: NDArray[np.float64]
    right: Matrix


class ProductSum:
    """A running sum of products, as one pair of factors.

    Args:
        out: Rows k of every B.
        inner: Columns d of every A.

    Guarantees:
        Memory is at most 2 m (k + d) numbers with m = min(k, d), whatever is added: where the stack would grow beyond 2 m
        it is brought back to m by one QR, which is exact. From rank m on the factors are no smaller than the map itself,
        and adding to them costs O(k d m); a strategy whose platforms have small ranks stays far below.

    >>> total = ProductSum(2, 3)
    >>> total.add([[1.0], [0.0]], [[0.0, 2.0, 0.0]], weight=0.5)
    >>> total.add([[0.0], [1.0]], [[3.0, 0.0, 0.0]], weight=1.0)
    >>> spectrum = total.spectrum()
    >>> spectrum.values.round(6).tolist()
    [3.0, 1.0]
    """

    def __init__(self, out: int, inner: int) -> None:
        self._out, self._inner = out, inner
        self._left: list[Matrix] = []
        self._right: list[Matrix] = []
        self._rank, self._size = 0, 0.0

    @property
    def rank(self) -> int:
        """Columns that are held, at least the rank of the sum."""
        return self._rank

    def add(self, b: ArrayLike, a: ArrayLike, *, weight: float = 1.0) -> None:
        """Add `weight` times B A; neither array is kept.

        Args:
            b: (k, r).
            a: (r, d), of any r.
        """
        left, right = np.array(b, np.float64) * weight, np.array(a, np.float64)
        self._size += float(np.linalg.norm(left) * np.linalg.norm(right))
        self._left.append(left)
        self._right.append(right)
        self._rank += left.shape[1]
        if self._rank > 2 * min(self._out, self._inner):
            self._put(*_shortened(*self._stacks()))

    def scaled(self, factor: float) -> ProductSum:
        """The same sum times a number."""
        other = ProductSum(self._out, self._inner)
        if self._rank:
            left, right = self._stacks()
            other.add(left * factor, right)
        return other

    def factors(self) -> tuple[Matrix, Matrix]:
        """The sum as B (k, R) and A (R, d), with R its rank: columns that add nothing are left out.

        The singular values are shared evenly, so that both factors have the same size.
        """
        spectrum = self.spectrum()
        root = np.sqrt(spectrum.values)
        return spectrum.left * root, root[:, None] * spectrum.right

    def spectrum(self) -> Spectrum:
        """The sum's singular values and vectors."""
        if not self._rank:
            return Spectrum(left=np.zeros((self._out, 0)), values=np.zeros(0), right=np.zeros((0, self._inner)))
        left, right = _shortened(*self._stacks())
        left_basis, left_core = np.linalg.qr(left)
        right_basis, right_core = np.linalg.qr(right.T)
        u, values, v = np.linalg.svd(left_core @ right_core.T)
        kept = int((values > _KEPT * self._size).sum())
        return Spectrum(left=left_basis @ u[:, :kept], values=values[:kept], right=v[:kept] @ right_basis.T)

    def _stacks(self) -> tuple[Matrix, Matrix]:
        self._put(np.concatenate(self._left, axis=1), np.concatenate(self._right, axis=0))
        return self._left[0], self._right[0]

    def _put(self, left: Matrix, right: Matrix) -> None:
        self._left, self._right, self._rank = [left], [right], left.shape[1]


def _shortened(left: Matrix, right: Matrix) -> tuple[Matrix, Matrix]:
    """The same product with at most min(k, d) columns between, exactly: L R = Q (T R) with L = Q T."""
    if left.shape[1] > left.shape[0]:
        basis, core = np.linalg.qr(left)
        left, right = basis, core @ right
    if right.shape[0] > right.shape[1]:
        basis, core = np.linalg.qr(right.T)
        left, right = left @ core.T, basis.T
    return left, right
