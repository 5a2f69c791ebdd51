"""Item-item ridge regression in closed form (EASE: Steck 2019, "Embarrassingly shallow autoencoders for sparse data").

With rows A (a user each) and G = A'A + ridge I, P = G^-1, the weights are B = I - P diag(1 / P_ii): each item is predicted from
the others, never from itself. Rows may also be factors that were released by others: what counts of rows is A'A alone.

- Of more rows than items A'A is formed, and inverted for each ridge by Cholesky's decomposition: a ninth of the operations of
  eigenvalues.
- Of fewer rows, one decomposition A'A = V' diag(s) V serves every ridge: P = V' diag(1 / (s + ridge)) V + (I - V'V) / ridge. So P
  need not be formed where items are many and rows are few.
- Where both are many, the popular items are computed with as above, and each rare one by its nearest of these
  (`client/recommender/item_neighbours.py`).

Decomposed in float64. An item that is in no row scores 0 and adds nothing, so that only the others, which are `active`, are
computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.examples.split import entry_rows
from client.recommender.histories import MetEntries
from client.recommender.item_neighbours import RareItems, nearest_popular, rare_weights

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Sparse: TypeAlias = scipy.sparse.csr_matrix

MOST_ITEMS = 8192
"""Items up to which P is formed: A'A has 512 MiB, P 256, and as it is inverted another 512."""
MOST_ROWS = 4096
"""Rows up to which items may be any number; of more rows and items, the most popular `MOST_ITEMS` are computed with."""
_AT_ONCE = 256
_NEARLY_FULL = 0.25
_NOTHING = 1e-5


@dataclass(frozen=True, kw_only=True)
class RowSpectrum:
    """A'A of some rows as directions @ their squared singular values.

    Args:
        active: int64 (active items,), ascending. Those that are in a row.
        values: float64 (rank,), above 0.
        directions: float32 (rank, active items), orthonormal.
    """

    active: Numbers
    values: NDArray[np.float64]
    directions: Floats


@dataclass(frozen=True, kw_only=True)
class RowGram:
    """A'A of some rows, of the popular items where there are many.

    Args:
        active: int64 (active items,), ascending. Those that are in a row.
        popular: int64 (popular items,), ascending. Those of the matrix; all active ones where these are few.
        gram: float64 (popular items, popular items).
        rows: (rows, items).
        apart: int64. Rows without which rare items are predicted where a row is to be left out: all of them at once.
    """

    active: Numbers = field(repr=False)
    popular: Numbers = field(repr=False)
    gram: NDArray[np.float64] = field(repr=False)
    rows: Sparse = field(repr=False)
    apart: Numbers = field(repr=False)

    @cached_property
    def rare(self) -> RareItems:
        """Active items that are not in the matrix."""
        return nearest_popular(self.rows, self.popular, np.setdiff1d(self.active, self.popular, assume_unique=True))

    @cached_property
    def rare_apart(self) -> RareItems:
        """The same without the rows that are kept apart."""
        rare = np.setdiff1d(self.active, self.popular, assume_unique=True)
        return nearest_popular(self.rows[np.setdiff1d(np.arange(self.rows.shape[0]), self.apart)], self.popular, rare)


class ItemRidge:
    """Scores of all items from a history.

    Args:
        rows: (rows, items).
        ridge: Above 0.
        spectrum: Of the same rows, where it is at hand.
    """

    def __init__(self, rows: Sparse, *, ridge: float, spectrum: RowSpectrum | RowGram | None = None) -> None:
        if not ridge > 0:
            raise ValueError(f"a ridge of {ridge}")
        spectrum = spectrum or spectrum_of(rows)
        self.ridge, self.items, self.active = ridge, rows.shape[1], spectrum.active
        self._popular, self._inverse, self._gram = spectrum.active, None, None
        self._kept: Sparse | None = None
        inverse: NDArray[np.float64]
        if isinstance(spectrum, RowGram):
            inverse = _inverted(spectrum.gram, ridge)
            self._popular = spectrum.popular
            self._gram = spectrum if len(self._popular) < len(self.active) else None
        else:
            values, directions = spectrum.values, spectrum.directions
            if len(self.active) > min(MOST_ITEMS, 2 * len(values)):
                self._root: Floats = np.sqrt(values / (values + ridge)).astype(np.float32)[:, None] * directions
                self._root_by_item = np.ascontiguousarray(self._root.T)
                squares = np.einsum("ri,ri->i", self._root, self._root, dtype=np.float64)
                self._diagonal: Floats = ((1.0 - squares) / ridge).astype(np.float32)
                return
            # Both terms at once: 1 / (s + ridge) - 1 / ridge.
            moved = -values / (ridge * (values + ridge))
            inverse = (directions.T.astype(np.float64) * moved) @ directions
            inverse[np.diag_indices(len(self.active))] += 1.0 / ridge
        self._diagonal = np.diag(inverse).astype(np.float32)
        self._inverse = inverse.astype(np.float32)

    def scores(self, histories: Sparse) -> Floats:
        """Scores of every item, float32 (n, items); 0 for an item that says nothing of any in the history.

        Args:
            histories: (n, items). Weight of each item in the history, 0 for the others.
        """
        among = self._among_popular(histories)
        scores = self._of_all(_less(among, self._times_inverse(among) / self._diagonal), self._popular)
        if (rare := self.rare) is not None:
            scores += (histories @ rare).toarray()
        return scores

    def for_one(self, history: Sparse) -> tuple[Floats, Callable[[Numbers], Floats]]:
        """Of one history: `scores`, float32 (items,), and what each of its items adds to some items' (`Evidence.for_one`)."""
        among, place = self._among_popular(history), self._places[history.indices]
        scores = self._of_all(_less(among, self._times_inverse(among) / self._diagonal), self._popular)[0]
        rare = None if self.rare is None else MetEntries.of(history, self.rare)
        if rare is not None:
            scores += rare.total()

        def by_item(items: Numbers) -> Floats:
            found = np.zeros((history.nnz, len(items)), np.float32)
            rows, columns = np.flatnonzero(place >= 0), np.flatnonzero(self._places[items] >= 0)
            at, scored = place[rows], self._places[items[columns]]
            itself = among.data[:, None] * (at[:, None] == scored)
            if self._inverse is not None:
                moved = among.data[:, None] * self._inverse[np.ix_(at, scored)]
            else:
                moved = (among.data[:, None] * self._root_by_item[at]) @ self._root[:, scored]
                moved = (itself - moved) / self.ridge
            found[np.ix_(rows, columns)] = itself - moved / self._diagonal[scored]
            return found if rare is None else found + rare.by_item(items)

        return scores, by_item

    def scores_without(self, rows: Sparse, histories: Sparse, which: Numbers) -> Floats:
        """Scores as they were if the fitted rows did not hold one of these, float32 (n, items).

        The rank-one update of Sherman and Morrison: P + v v' / (1 - x'v) with v = P x. Rare items' weights are those without all
        rows that are kept apart.

        Args:
            rows: (users, items). As they were fitted.
            histories: (n, items).
            which: int64 (n,). The row of `rows` that each history's scores are to be without.
        """
        return self._of_all(self.active_without(rows, histories, which), self.active)

    def active_without(self, rows: Sparse, histories: Sparse, which: Numbers) -> Floats:
        """`scores_without` of the active items alone, float32 (n, active items)."""
        every, rows, histories = histories, self._among_popular(rows), self._among_popular(histories)
        without = self._times_inverse(rows)
        share = (1.0 / np.maximum(1.0 - rows.multiply(without).sum(1).A1, 1e-6)).astype(np.float32)[which, None]
        without = without[which]
        moved = self._times_inverse(histories)
        moved += share * histories.multiply(without).sum(1).A1.astype(np.float32)[:, None] * without
        moved /= self._diagonal + share * without**2
        scores = _less(histories, moved)
        # What is left of a row by rounding is largest at that row's own items, which are those to be predicted.
        scores[np.abs(scores) < _NOTHING] = 0.0
        if self._gram is None:
            return scores
        scores = self._of_all(scores, self._popular) + (every @ self._rare_apart).toarray()
        return scores if len(self.active) == self.items else np.take(scores, self.active, axis=1)

    def weights_from(self, item: int) -> Floats:
        """What one item in a history adds to every item's score, float32 (items,)."""
        one = scipy.sparse.csr_matrix(([1.0], ([0], [item])), shape=(1, self.items), dtype=np.float32)
        weights: Floats = self.scores(one)[0]
        return weights

    @cached_property
    def rare(self) -> Sparse | None:
        """Weights from and to rare items, float32 (items, items); None where there are none."""
        return self._kept if self._gram is None else self._weights_of(self._gram.rare)

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """What `scores` needs, by name."""
        found: dict[str, NDArray[np.generic]] = {"active": self.active, "popular": self._popular, "diagonal": self._diagonal}
        found |= {"root": self._root} if self._inverse is None else {"inverse": self._inverse}
        if (rare := self.rare) is not None:
            found |= {"rare.data": rare.data, "rare.indices": rare.indices, "rare.indptr": rare.indptr}
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, NDArray[Any]], *, ridge: float, items: int) -> ItemRidge:
        """A model of what `tensors` gave: for `scores` alone, since the rows that it was fitted on are not in them."""
        made = cls.__new__(cls)
        made.ridge, made.items, made.active = ridge, items, tensors["active"]
        made._popular, made._diagonal, made._gram, made._kept = tensors["popular"], tensors["diagonal"], None, None
        made._inverse = tensors.get("inverse")
        if made._inverse is None:
            made._root = tensors["root"]
            made._root_by_item = np.ascontiguousarray(made._root.T)
        if "rare.data" in tensors:
            entries = tensors["rare.data"], tensors["rare.indices"], tensors["rare.indptr"]
            made._kept = scipy.sparse.csr_matrix(entries, shape=(items, items))
        return made

    @cached_property
    def _rare_apart(self) -> Sparse:
        """The same without the rows that are kept apart."""
        assert self._gram is not None
        return self._weights_of(self._gram.rare_apart)

    def _weights_of(self, rare: RareItems) -> Sparse:
        assert self._gram is not None
        gram, popular = self._gram.gram, self._popular
        return rare_weights(rare, gram, ridge=self.ridge, popular=popular, precision=self._diagonal, items=self.items)

    @cached_property
    def _places(self) -> Numbers:
        """Place of each item among the popular ones, -1 for another, int64 (items,)."""
        places = np.full(self.items, -1, np.int64)
        places[self._popular] = np.arange(len(self._popular))
        return places

    def _among_popular(self, left: Sparse) -> Sparse:
        if len(self._popular) == self.items:
            return left
        place = self._places[left.indices]
        there = place >= 0
        offsets = np.concatenate([[0], np.cumsum(there)])[left.indptr]
        return scipy.sparse.csr_matrix((left.data[there], place[there], offsets), shape=(left.shape[0], len(self._popular)))

    def _of_all(self, scores: Floats, which: Numbers) -> Floats:
        if len(which) == self.items:
            return scores
        everywhere = np.zeros((len(scores), self.items), np.float32)
        everywhere[:, which] = scores
        return everywhere

    def _times_inverse(self, left: Sparse) -> Floats:
        product: Floats
        if self._inverse is not None:
            product = left @ self._inverse
        else:
            product = (left @ self._root_by_item) @ self._root
            product *= -1.0
            product[entry_rows(left.indptr), left.indices] += left.data
            product /= self.ridge
        return product


def spectrum_of(rows: Sparse, *, apart: Numbers | None = None) -> RowSpectrum | RowGram:
    """What serves every ridge: A'A, or where rows are fewer than items its eigenvalues above rounding and their directions.

    Args:
        apart: As in `RowGram`; by default none.
    """
    counts = rows.getnnz(axis=0)
    popular = active = np.flatnonzero(counts)
    many = len(active) > MOST_ITEMS
    if rows.shape[0] > MOST_ROWS if many else rows.shape[0] >= len(active):
        if many:
            popular = np.sort(np.argsort(-counts, kind="stable")[:MOST_ITEMS])
        apart = np.zeros(0, np.int64) if apart is None else apart
        return RowGram(active=active, popular=popular, gram=gram_of(rows, popular), rows=rows, apart=apart)
    values, directions = _decomposed(rows if len(active) == rows.shape[1] else rows[:, active])
    return RowSpectrum(active=active, values=values, directions=_f32(directions))


def gram_of(rows: Sparse, items: Numbers) -> NDArray[np.float64]:
    """A'A of some items, float64 (items, items).

    Some items at a time, so that beside the result little is held; rows that are nearly full, as factors are, are multiplied as
    such. In float64, since rounding against a large factor must not outweigh a ridge.
    """
    rows = rows if len(items) == rows.shape[1] else rows[:, items]
    full = rows.getnnz(axis=1) > _NEARLY_FULL * len(items)
    gram = np.zeros((len(items), len(items)))
    if full.any():
        dense = rows[np.flatnonzero(full)].toarray().astype(np.float64)
        gram += dense.T @ dense
        rows = rows[np.flatnonzero(~full)]
    rows = rows.astype(np.float64)
    columns = rows.tocsc()
    for begin in range(0, len(items), _AT_ONCE):
        gram[begin : begin + _AT_ONCE] += (columns[:, begin : begin + _AT_ONCE].T @ rows).toarray()
    return gram


def _inverted(gram: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """(A'A + ridge I)^-1."""
    # Symmetric, so that either order of its axes is the same matrix.
    matrix = gram.copy().T
    if not len(matrix):
        return matrix
    matrix[np.diag_indices(len(matrix))] += ridge
    factor, wrong = scipy.linalg.lapack.dpotrf(matrix, lower=1, overwrite_a=1, clean=0)
    inverse, singular = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    if wrong or singular:
        raise ArithmeticError(f"a sum of squares and a ridge of {ridge} that are not positive definite")
    for begin in range(0, len(inverse), _AT_ONCE):
        end = min(begin + _AT_ONCE, len(inverse))
        inverse[:begin, begin:end] = inverse[begin:end, :begin].T
        corner = np.tril(inverse[begin:end, begin:end])
        inverse[begin:end, begin:end] = corner + np.tril(corner, -1).T
    # Row by row, as a sparse matrix wants what it is multiplied by: else each product would first copy all of it.
    found: NDArray[np.float64] = inverse.T
    return found


def _decomposed(rows: Sparse) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    items = rows.shape[1]
    values, left = scipy.linalg.eigh((rows @ rows.T).toarray().astype(np.float64), overwrite_a=True, check_finite=False)
    found = values > 1e-12 * items * float(values.max(initial=0.0))
    values, left = values[found], left[:, found]
    return values, (rows.T.astype(np.float64) @ left).T / np.sqrt(values)[:, None]


def _f32(values: NDArray[np.float64]) -> Floats:
    return np.ascontiguousarray(values, np.float32)


def _less(histories: Sparse, moved: Floats) -> Floats:
    """histories - moved, in the place of `moved`."""
    np.negative(moved, out=moved)
    moved[entry_rows(histories.indptr), histories.indices] += histories.data
    return moved
