"""Item-item ridge regression in closed form (EASE: Steck 2019, "Embarrassingly shallow autoencoders for sparse data").

With rows A (a user each) and G = A'A + ridge I, P = G^-1, the weights are B = I - P diag(1 / P_ii): each item is predicted from
the others, never from itself. Rows may also be factors that were released by others: what counts of rows is A'A alone.

P is never formed where rows are fewer than items: with L L' = A A' + ridge I and Z = L^-1 A it is (I - Z'Z) / ridge (Woodbury).
Where both are many, the rows are replaced by their leading singular directions, which serve as rows like any others.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

Floats = NDArray[np.float64]

MOST_ROWS = 4096
"""Rows that are kept where items are more; above, so many singular directions."""
MOST_ITEMS = 8192
"""Items up to which an (items, items) matrix is formed."""


class ItemRidge:
    """Scores of all items from a history.

    Args:
        rows: (rows, items), sparse or dense.
        ridge: Above 0.
    """

    def __init__(self, rows: scipy.sparse.csr_matrix | Floats, *, ridge: float) -> None:
        if not ridge > 0:
            raise ValueError(f"a ridge of {ridge}")
        self.ridge, self.items = ridge, rows.shape[1]
        self._inverse: Floats | None = None
        if self.items <= min(rows.shape[0], MOST_ITEMS):
            gram = _dense(rows.T @ rows)
            gram[np.diag_indices(self.items)] += ridge
            self._inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
            self._diagonal: Floats = np.diag(self._inverse).copy()
            return
        kept = _dense(rows) if rows.shape[0] <= MOST_ROWS else leading_rows(rows, MOST_ROWS // 4)
        outer = kept @ kept.T
        outer[np.diag_indices(len(kept))] += ridge
        lower = scipy.linalg.cholesky(outer, lower=True, overwrite_a=True, check_finite=False)
        self._root: Floats = scipy.linalg.solve_triangular(lower, kept, lower=True, check_finite=False)
        self._diagonal = (1.0 - np.einsum("ri,ri->i", self._root, self._root)) / ridge

    def scores(self, histories: Floats) -> Floats:
        """Scores of every item, (n, items); 0 for an item that says nothing of any in the history.

        Args:
            histories: (n, items). Weight of each item in the history, 0 for the others.
        """
        scores: Floats = histories - self._times_inverse(histories) / self._diagonal
        return scores

    def scores_without(self, rows: Floats, histories: Floats) -> Floats:
        """Scores as they were if the fitted rows did not hold these: row i of the result is without `rows[i]`.

        The rank-one update of Sherman and Morrison: P + v v' / (1 - x'v) with v = P x.

        Args:
            rows: (n, items). As they were fitted.
            histories: (n, items).
        """
        without = self._times_inverse(rows)
        share = 1.0 / np.maximum(1.0 - np.einsum("ni,ni->n", rows, without), 1e-9)[:, None]
        moved = self._times_inverse(histories)
        moved += share * np.einsum("ni,ni->n", histories, without)[:, None] * without
        scores: Floats = histories - moved / (self._diagonal + share * without**2)
        return scores

    def weights_from(self, item: int) -> Floats:
        """What one item in a history adds to every item's score, (items,)."""
        one = np.zeros((1, self.items))
        one[0, item] = 1.0
        weights: Floats = self.scores(one)[0]
        return weights

    def _times_inverse(self, left: Floats) -> Floats:
        if self._inverse is not None:
            product: Floats = left @ self._inverse
        else:
            product = (left - (left @ self._root.T) @ self._root) / self.ridge
        return product


def leading_rows(rows: scipy.sparse.csr_matrix | Floats, most: int) -> Floats:
    """So many rows with nearly the same A'A: S V' of the leading singular values, (most, items)."""
    _, values, directions = randomized_svd(rows, n_components=most, n_iter=3, random_state=0)
    scaled: Floats = values[:, None] * directions
    return scaled


def _dense(matrix: scipy.sparse.csr_matrix | Floats) -> Floats:
    found: Floats = np.asarray(matrix if isinstance(matrix, np.ndarray) else matrix.toarray(), np.float64)
    return found
