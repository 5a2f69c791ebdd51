"""Item-item ridge regression in closed form (EASE: Steck 2019, "Embarrassingly shallow autoencoders for sparse data").

With rows A (a user each) and G = A'A + ridge I, P = G^-1, the weights are B = I - P diag(1 / P_ii): each item is predicted from
the others, never from itself. Rows may also be factors that were released by others: what counts of rows is A'A alone.

One decomposition A'A = V' diag(s) V serves every ridge: P = V' diag(1 / (s + ridge)) V, plus (I - V'V) / ridge where V has fewer
rows than there are items. So P need not be formed where items are many and rows are few. Where rows are many too, their
leading singular directions are kept. Decomposed in float64. An item that is in no row scores 0 and adds nothing, so that only
the others, which are `active`, are computed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

Floats = NDArray[np.float32]
Sparse: TypeAlias = scipy.sparse.csr_matrix

MOST_ITEMS = 8192
"""Items up to which P is formed: 256 MiB."""
MOST_ROWS = 4096
"""Rows that are kept where items are more than `MOST_ITEMS`; above, a quarter as many singular directions."""
_NOTHING = 1e-5


@dataclass(frozen=True, kw_only=True)
class RowSpectrum:
    """A'A of some rows as directions @ their squared singular values.

    Args:
        active: int64 (active items,), ascending. Those that are in a row.
        values: float64 (rank,), above 0.
        directions: float32 (rank, active items), orthonormal.
    """

    active: NDArray[np.int64]
    values: NDArray[np.float64]
    directions: Floats


class ItemRidge:
    """Scores of all items from a history.

    Args:
        rows: (rows, items).
        ridge: Above 0.
        spectrum: Of the same rows, where it is at hand.
    """

    def __init__(self, rows: Sparse, *, ridge: float, spectrum: RowSpectrum | None = None) -> None:
        if not ridge > 0:
            raise ValueError(f"a ridge of {ridge}")
        spectrum = spectrum or spectrum_of(rows)
        self.ridge, self.items, self.active = ridge, rows.shape[1], spectrum.active
        values, directions = spectrum.values, spectrum.directions
        self._inverse: Floats | None = None
        if len(self.active) <= min(MOST_ITEMS, 2 * len(values)):
            # Both terms at once: 1 / (s + ridge) - 1 / ridge.
            moved = -values / (ridge * (values + ridge))
            inverse = (directions.T.astype(np.float64) * moved) @ directions
            inverse[np.diag_indices(len(self.active))] += 1.0 / ridge
            self._diagonal: Floats = np.diag(inverse).astype(np.float32)
            self._inverse = inverse.astype(np.float32)
            return
        self._root: Floats = np.sqrt(values / (values + ridge)).astype(np.float32)[:, None] * directions
        self._root_by_item = np.ascontiguousarray(self._root.T)
        squares = np.einsum("ri,ri->i", self._root, self._root, dtype=np.float64)
        self._diagonal = ((1.0 - squares) / ridge).astype(np.float32)

    def scores(self, histories: Sparse) -> Floats:
        """Scores of every item, float32 (n, items); 0 for an item that says nothing of any in the history.

        Args:
            histories: (n, items). Weight of each item in the history, 0 for the others.
        """
        among = self._among_active(histories)
        return self._of_all(_less(among, self._times_inverse(among) / self._diagonal))

    def scores_without(self, rows: Sparse, histories: Sparse, which: NDArray[np.int64]) -> Floats:
        """Scores as they were if the fitted rows did not hold one of these, float32 (n, items).

        The rank-one update of Sherman and Morrison: P + v v' / (1 - x'v) with v = P x.

        Args:
            rows: (users, items). As they were fitted.
            histories: (n, items).
            which: int64 (n,). The row of `rows` that each history's scores are to be without.
        """
        return self._of_all(self.active_without(rows, histories, which))

    def active_without(self, rows: Sparse, histories: Sparse, which: NDArray[np.int64]) -> Floats:
        """`scores_without` of the active items alone, float32 (n, active items)."""
        rows, histories = self._among_active(rows), self._among_active(histories)
        without = self._times_inverse(rows)
        share = (1.0 / np.maximum(1.0 - rows.multiply(without).sum(1).A1, 1e-6)).astype(np.float32)[which, None]
        without = without[which]
        moved = self._times_inverse(histories)
        moved += share * histories.multiply(without).sum(1).A1.astype(np.float32)[:, None] * without
        moved /= self._diagonal + share * without**2
        scores = _less(histories, moved)
        # What is left of a row by rounding is largest at that row's own items, which are those to be predicted.
        scores[np.abs(scores) < _NOTHING] = 0.0
        return scores

    def weights_from(self, item: int) -> Floats:
        """What one item in a history adds to every item's score, float32 (items,)."""
        one = scipy.sparse.csr_matrix(([1.0], ([0], [item])), shape=(1, self.items), dtype=np.float32)
        weights: Floats = self.scores(one)[0]
        return weights

    def _among_active(self, left: Sparse) -> Sparse:
        return left if len(self.active) == self.items else left[:, self.active]

    def _of_all(self, scores: Floats) -> Floats:
        if len(self.active) == self.items:
            return scores
        everywhere = np.zeros((len(scores), self.items), np.float32)
        everywhere[:, self.active] = scores
        return everywhere

    def _times_inverse(self, left: Sparse) -> Floats:
        product: Floats
        if self._inverse is not None:
            product = left @ self._inverse
        else:
            product = (left @ self._root_by_item) @ self._root
            product *= -1.0
            product[left.nonzero()] += left.data
            product /= self.ridge
        return product


def spectrum_of(rows: Sparse) -> RowSpectrum:
    """The eigenvalues of A'A above rounding, and their directions; of many rows and items the leading ones."""
    active = np.flatnonzero(rows.getnnz(axis=0))
    rows = rows if len(active) == rows.shape[1] else rows[:, active]
    values, directions = _decomposed(rows)
    return RowSpectrum(active=active, values=values, directions=_f32(directions))


def _decomposed(rows: Sparse) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count, items = rows.shape
    if items > MOST_ITEMS and count > MOST_ROWS:
        kept = leading_rows(rows, MOST_ROWS // 4)
        values = np.einsum("ri,ri->r", kept, kept)
        found = values > _rounding(values, items)
        return values[found], kept[found] / np.sqrt(values[found])[:, None]
    if count < items:
        values, left = scipy.linalg.eigh((rows @ rows.T).toarray().astype(np.float64), overwrite_a=True, check_finite=False)
        found = values > _rounding(values, items)
        values, left = values[found], left[:, found]
        return values, (rows.T.astype(np.float64) @ left).T / np.sqrt(values)[:, None]
    values, right = scipy.linalg.eigh((rows.T @ rows).toarray().astype(np.float64), overwrite_a=True, check_finite=False)
    found = values > _rounding(values, items)
    return values[found], right[:, found].T


def _rounding(values: NDArray[np.float64], items: int) -> float:
    return 1e-12 * items * float(values.max(initial=0.0))


def _f32(values: NDArray[np.float64]) -> Floats:
    return np.ascontiguousarray(values, np.float32)


def leading_rows(rows: Sparse, most: int) -> NDArray[np.float64]:
    """So many rows with nearly the same A'A: S V' of the leading singular values, float64 (most, items)."""
    _, values, directions = randomized_svd(rows, n_components=most, n_iter=3, random_state=0)
    scaled: NDArray[np.float64] = values[:, None] * directions
    return scaled


def _less(histories: Sparse, moved: Floats) -> Floats:
    """histories - moved, in the place of `moved`."""
    np.negative(moved, out=moved)
    moved[histories.nonzero()] += histories.data
    return moved
