"""Which items a platform's users like together, as a sum to which each user contributes a vector of norm 1."""

from __future__ import annotations

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.privacy.bounded_sum import BoundedSum
from shared.preferences.packing import packed

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
    users = np.arange(len(liked)) if only is None else only
    row, _, item = liked.entries(users)
    shared = place[item]
    kept = shared >= 0
    likes = scipy.sparse.csr_matrix((np.ones(int(kept.sum())), (row[kept], shared[kept])), shape=(len(users), items))
    likes.data[:] = 1.0  # added up where an item stood twice
    norms = np.sqrt(np.maximum(likes.sum(1).A1, 1.0))
    unit = scipy.sparse.diags(_BELOW / norms) @ likes
    return BoundedSum(parts={"sum": torch.from_numpy(packed((unit.T @ unit).toarray()))}, bound=1.0)
