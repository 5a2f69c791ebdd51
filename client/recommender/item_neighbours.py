"""Rare items in a ridge regression of many items: each by the few items that it is liked together with.

An item that few have liked has few neighbours that tell of it. Its regression is solved exactly, on the popular items that are
nearest to it by cosine, as SLIM chooses neighbours first (Ning & Karypis 2011, "SLIM: Sparse linear methods for top-N recommender
systems"). With b the coefficients and d = 1 / (what they leave of the item's square + ridge), -d b is the item's column of the
precision matrix in which rare items are independent given the popular ones, so the same b says what the rare item tells of them:
its weight for a popular item i is d b_i / P_ii, as anywhere in `client/recommender/item_ridge.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Sparse: TypeAlias = scipy.sparse.csr_matrix

NEIGHBOURS = 64
_ITEMS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class RareItems:
    """Items with their neighbours among the popular ones.

    Args:
        item: int64 (rare items,), ascending.
        neighbour: int64 (rare items, neighbours). Places among the popular items.
        together: float32 (rare items, neighbours). How often both are in a row; 0 for a neighbour that says nothing.
        square: float64 (rare items,). Sum of the item's squares.
    """

    item: Numbers = field(repr=False)
    neighbour: Numbers = field(repr=False)
    together: Floats = field(repr=False)
    square: NDArray[np.float64] = field(repr=False)


def nearest_popular(rows: Sparse, popular: Numbers, rare: Numbers) -> RareItems:
    """The popular items that each rare one is nearest to, by cosine.

    Args:
        rows: (rows, items).
        popular, rare: int64. Item numbers.
    """
    most = min(NEIGHBOURS, len(popular))
    columns = rows[:, rare].tocsc()
    among = rows[:, popular]
    square = np.asarray(rows.multiply(rows).sum(0), np.float64).ravel()
    scale = (1.0 / np.sqrt(np.maximum(square[popular], 1e-12))).astype(np.float32)
    neighbour = np.zeros((len(rare), most), np.int64)
    together = np.zeros((len(rare), most), np.float32)
    for begin in range(0, len(rare), _ITEMS_AT_ONCE):
        part = slice(begin, min(begin + _ITEMS_AT_ONCE, len(rare)))
        counts = np.asarray((columns[:, part].T @ among).toarray(), np.float32)
        # In ascending order, so that what is looked up in A'A for one item lies close together.
        near = np.sort(np.argpartition(counts * -scale, most - 1, axis=1)[:, :most], axis=1)
        neighbour[part], together[part] = near, np.take_along_axis(counts, near, axis=1)
    return RareItems(item=rare, neighbour=neighbour, together=together, square=square[rare])


def rare_weights(
    found: RareItems, gram: NDArray[np.float64], *, ridge: float, popular: Numbers, precision: Floats, items: int
) -> Sparse:
    """What a popular item in a history adds to the scores of rare ones, and a rare one to those of popular ones.

    Args:
        gram: float64 (popular items, popular items), A'A.
        precision: float32 (popular items,). Diagonal of (A'A + ridge I)^-1.

    Returns:
        float32 (items, items); row: in the history, column: scored.
    """
    count, most = found.neighbour.shape
    weight, back = np.zeros((count, most), np.float32), np.zeros((count, most), np.float32)
    for begin in range(0, count, _ITEMS_AT_ONCE):
        part = slice(begin, min(begin + _ITEMS_AT_ONCE, count))
        near, together = found.neighbour[part], found.together[part].astype(np.float64)
        system = gram[near[:, :, None], near[:, None, :]]
        system[:, np.arange(most), np.arange(most)] += ridge
        solved = np.linalg.solve(system, together[..., None])[..., 0]
        left = found.square[part] + ridge - (solved * together).sum(1)
        weight[part] = solved
        back[part] = solved / np.maximum(left, ridge)[:, None] / precision[near]
    rare = np.repeat(found.item, most)
    near = popular[found.neighbour.ravel()]
    entries = np.concatenate([weight.ravel(), back.ravel()])
    rows, columns = np.concatenate([near, rare]), np.concatenate([rare, near])
    said = entries != 0
    return scipy.sparse.csr_matrix((entries[said], (rows[said], columns[said])), shape=(items, items), dtype=np.float32)
