"""Which directions of items' texts a platform's users like together, as a sum to which each user contributes a norm of 1."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.examples.split import Ragged
from client.privacy.bounded_sum import BoundedSum
from shared.preferences.packing import packed

# Rounding must not make a norm larger than 1.
_BELOW = 1.0 - 1e-12
_LEAST = 1e-9


def bounded_tastes(liked: Ragged, directions: NDArray[np.float64], *, only: NDArray[np.int64] | None = None) -> BoundedSum:
    """The packed sum over users of P / |P|, P the sum over pairs i != j of what they like of f_i f_j'.

    Args:
        liked: Per user, numbers of this platform's items; one that is liked twice counts once.
        directions: f, float64 (items, d), of the public catalogue.
        only: int64 (users counted,). By default all.
    """
    total = np.zeros((directions.shape[1], directions.shape[1]))
    for user in np.arange(len(liked)) if only is None else only:
        total += taste_of(directions[np.unique(liked[int(user)])])
    return BoundedSum(parts={"sum": torch.from_numpy(packed(total))}, bound=1.0)


def taste_of(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """One user's part, float64 (d, d), symmetric, of Frobenius norm 1 at most; 0 where they like fewer than two items.

    Args:
        directions: float64 (items, d). Of what they like.
    """
    together = directions.sum(0)
    with np.errstate(over="ignore", invalid="ignore"):
        pairs = np.outer(together, together) - directions.T @ directions
        length = float(np.linalg.norm(pairs))
    # Nothing but rounding, or no number at all, is no taste.
    if len(directions) < 2 or not _LEAST < length < np.inf:
        return np.zeros_like(pairs)
    symmetric: NDArray[np.float64] = (pairs + pairs.T) * (_BELOW / 2 / length)
    return symmetric
