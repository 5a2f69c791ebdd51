"""The best items of each row of scores, in an order that does not depend on how they were found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SPARE = 8
"""Items looked at beyond those that are asked for: with the few that may have the same score, most often all."""


def top_items(scores: NDArray[np.float32], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The items of each row with the highest scores, and these scores, (rows, top), best first.

    Where fewer are left than asked for, -1 takes the place of the others. Of equal scores the first in the catalogue comes first.

    Args:
        scores: float32 (rows, items), -inf for what is no candidate.
        top: At most the number of items.

    >>> top_items(np.array([[1, 3, 3, -np.inf]], np.float32), 4)[0].tolist()
    [[1, 2, 0, -1]]
    """
    items = scores.shape[1]
    near = np.argpartition(-scores, min(top + _SPARE, items) - 1, axis=1)[:, : top + _SPARE]
    near.sort(axis=1)
    found = np.take_along_axis(scores, near, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    near, found = np.take_along_axis(near, order, axis=1)[:, :top], np.take_along_axis(found, order, axis=1)
    # Where more than the spare ones have the score at the edge, a partition takes any of them, and not the first.
    for tied in np.flatnonzero(found[:, top - 1] == found[:, -1]) if near.shape[1] < items else ():
        near[tied] = np.argsort(-scores[tied], kind="stable")[:top]
    found = found[:, :top]
    return np.where(np.isneginf(found), -1, near), found
