"""What a platform's users like, alone and together, as sums to which each user contributes a vector of norm at most 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.privacy.bounded_sum import BoundedSum
from shared.preferences.packing import packed_product, subtract_products
from shared.preferences.sum_kind import triangle_size

# Rounding must not make a norm larger than 1.
_BELOW = 1.0 - 1e-9
_AT_ONCE = 1 << 20
"""Likes, at least."""
_LEAST = 0.05
"""Squared length beside the axis from which on a user counts in full: what rounding leaves of a shorter one is not blown up."""


def bounded_preferences(
    liked: Ragged,
    place: NDArray[np.int64],
    *,
    direction: NDArray[np.float32],
    items: int,
    only: NDArray[np.int64] | None = None,
) -> BoundedSum:
    """The packed sum over users of v v' / max(|v|^2, 0.05), v = y - (y'q) q, y = x / |x|.

    x is the indicator of what a user likes of the shared items and q the direction of popularity, so v is how the user differs
    from what everybody likes. v v' / |v|^2 has Frobenius norm 1 whatever x and q are, also where a coordinator makes up q.

    With w = 1 / max(|v|^2, 0.05) and c = y'q of every user, the sum is Y'WY - r q' - q r' + (sum of w c^2) q q', r = Y'Wc: no
    user's dense vector is made. Users are added up some at a time, so that memory does not grow with their likes.

    Args:
        direction: float32 (items,). q, of any length; all zeros take nothing off.
        liked: Per user, numbers of this platform's items; one that is liked twice counts once.
        place: int64 (platform's items,). Place of each among the shared items, -1 where it is not shared.
        items: Shared items.
        only: int64 (users counted,). By default all.
    """
    axis = _of_length_one(direction)
    total, crossed, squares = np.zeros(triangle_size(items)), np.zeros(items), 0.0
    # As many likes at once as a quarter of the vector has numbers, if that is more: else adding vectors up would take longest.
    for unit in _unit_rows(liked, place, items=items, only=only, at_once=max(_AT_ONCE, len(total) // 4)):
        along, weight = _beside(unit, axis)
        total += packed_product(scipy.sparse.csr_matrix(scipy.sparse.diags(np.sqrt(weight)) @ unit))
        crossed += unit.T @ (weight * along)
        squares += float(weight @ along**2)
    subtract_products(total, crossed - squares / 2 * axis, axis)
    return BoundedSum(parts={"sum": torch.from_numpy(total)}, bound=1.0)


def length_along(liked: Ragged, place: NDArray[np.int64], *, direction: NDArray[np.float32], items: int) -> float:
    """Sum over users of (y'q)^2, what of them `bounded_preferences` leaves out; exact, and for the platform's own use alone.

    Args:
        liked, place, direction, items: As `bounded_preferences`.
    """
    axis = _of_length_one(direction)
    return sum(float(((unit @ axis) ** 2).sum()) for unit in _unit_rows(liked, place, items=items, only=None, at_once=_AT_ONCE))


def bounded_likes(liked: Ragged, place: NDArray[np.int64], *, items: int, only: NDArray[np.int64] | None = None) -> BoundedSum:
    """The sum over users of x / |x|: how popular the shared items are; as `bounded_preferences`, (items,)."""
    total = np.zeros(items)
    for unit in _unit_rows(liked, place, items=items, only=only, at_once=_AT_ONCE):
        total += np.asarray(unit.sum(0), np.float64).ravel()
    return BoundedSum(parts={"sum": torch.from_numpy(total)}, bound=1.0)


def _of_length_one(direction: NDArray[np.float32]) -> NDArray[np.float64]:
    axis = direction.astype(np.float64)
    found: NDArray[np.float64] = axis / max(float(np.linalg.norm(axis)), np.finfo(float).tiny)
    return found


def _beside(unit: scipy.sparse.csr_matrix, axis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of every user y'q, and the weight 1 / max(|v|^2, 0.05)."""
    along: NDArray[np.float64] = unit @ axis
    beside = np.asarray(unit.multiply(unit).sum(1)).ravel() - along**2
    weight: NDArray[np.float64] = _BELOW / np.maximum(beside, _LEAST)
    return along, weight


def _unit_rows(
    liked: Ragged, place: NDArray[np.int64], *, items: int, only: NDArray[np.int64] | None, at_once: int
) -> Iterator[scipy.sparse.csr_matrix]:
    """x / |x| of some users after the other, of norm 1 at most; of so many likes at once, or of one user."""
    users = np.arange(len(liked)) if only is None else only
    ends = np.cumsum(liked.lengths()[users])
    begin = 0
    while begin < len(users):
        had = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, had + at_once, side="right")))
        row, _, item = liked.entries(users[begin:end])
        shared = place[item]
        kept = shared >= 0
        likes = scipy.sparse.csr_matrix((np.ones(int(kept.sum())), (row[kept], shared[kept])), shape=(end - begin, items))
        likes.data[:] = 1.0  # added up where an item was listed twice
        norms = np.sqrt(np.maximum(likes.sum(1).A1, 1.0))
        yield scipy.sparse.csr_matrix(scipy.sparse.diags(_BELOW / norms) @ likes)
        begin = end
