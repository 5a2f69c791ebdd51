"""Which items a platform's users like together, as a sum to which each user contributes a vector of norm 1."""

from __future__ import annotations

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.privacy.bounded_sum import BoundedSum
from shared.preferences.packing import packed_product

# Rounding must not make a norm larger than 1.
_BELOW = 1.0 - 1e-12


def bounded_preferences(
    liked: Ragged, place: NDArray[np.int64], *, items: int, only: NDArray[np.int64] | None = None
) -> BoundedSum:
    """The packed sum over users of x x' / |x|^2, x the indicator of what a user likes of the shared items.

    Args:
        liked: Per user, numbers of this platform's items; one that is liked twice counts once.
        place: int64 (platform's items,). Place of each among the shared items, -1 where it is not shared.
        items: Shared items.
        only: int64 (users counted,). By default all.
    """
    unit = _unit_rows(liked, place, items=items, only=only)
    return BoundedSum(parts={"sum": torch.from_numpy(packed_product(unit))}, bound=1.0)


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
