"""What a platform's users like, alone and together, as sums to which each user contributes a vector of norm at most 1."""

from __future__ import annotations

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.privacy.bounded_sum import BoundedSum
from shared.preferences.packing import packed_product, subtract_products

# Rounding must not make a norm larger than 1.
_BELOW = 1.0 - 1e-9
_LEAST = 1e-3
"""Squared length beside the axis from which on a user counts in full: a vector of less is what rounding left of it."""


def bounded_preferences(
    liked: Ragged,
    place: NDArray[np.int64],
    *,
    direction: NDArray[np.float32],
    items: int,
    only: NDArray[np.int64] | None = None,
) -> BoundedSum:
    """The packed sum over users of v v' / max(|v|^2, 0.001), v = y - (y'q) q, y = x / |x|.

    x is the indicator of what a user likes of the shared items and q the direction of popularity, so v is how the user differs
    from what everybody likes. v v' / |v|^2 has Frobenius norm 1 whatever x and q are, also where a coordinator makes up q.

    With w = 1 / max(|v|^2, 0.001) and c = y'q of every user, the sum is Y'WY - r q' - q r' + (sum of w c^2) q q', r = Y'Wc: no
    user's dense vector is made.

    Args:
        direction: float32 (items,). q, of any length; all zeros take nothing off.
        liked: Per user, numbers of this platform's items; one that is liked twice counts once.
        place: int64 (platform's items,). Place of each among the shared items, -1 where it is not shared.
        items: Shared items.
        only: int64 (users counted,). By default all.
    """
    unit = _unit_rows(liked, place, items=items, only=only)
    axis = direction.astype(np.float64)
    axis /= max(float(np.linalg.norm(axis)), np.finfo(float).tiny)
    along = unit @ axis
    beside = np.asarray(unit.multiply(unit).sum(1)).ravel() - along**2
    weight = _BELOW / np.maximum(beside, _LEAST)
    total = packed_product(scipy.sparse.csr_matrix(scipy.sparse.diags(np.sqrt(weight)) @ unit))
    crossed = unit.T @ (weight * along) - (weight @ along**2 / 2) * axis
    subtract_products(total, crossed, axis)
    return BoundedSum(parts={"sum": torch.from_numpy(total)}, bound=1.0)


def bounded_likes(liked: Ragged, place: NDArray[np.int64], *, items: int, only: NDArray[np.int64] | None = None) -> BoundedSum:
    """The sum over users of x / |x|: how popular the shared items are; as `bounded_preferences`, (items,)."""
    unit = _unit_rows(liked, place, items=items, only=only)
    return BoundedSum(parts={"sum": torch.from_numpy(np.asarray(unit.sum(0), np.float64).ravel())}, bound=1.0)


def _unit_rows(liked: Ragged, place: NDArray[np.int64], *, items: int, only: NDArray[np.int64] | None) -> scipy.sparse.csr_matrix:
    """x / |x| per user, of norm 1 at most."""
    users = np.arange(len(liked)) if only is None else only
    row, _, item = liked.entries(users)
    shared = place[item]
    kept = shared >= 0
    likes = scipy.sparse.csr_matrix((np.ones(int(kept.sum())), (row[kept], shared[kept])), shape=(len(users), items))
    likes.data[:] = 1.0  # added up where an item stood twice
    norms = np.sqrt(np.maximum(likes.sum(1).A1, 1.0))
    return scipy.sparse.csr_matrix(scipy.sparse.diags(_BELOW / norms) @ likes)
