"""Sums over users in which each user's part is bounded: the only thing that a mechanism takes.

A bound that is checked can fail on one user's rows, and that it failed is then an answer about that user. So every way of making
a `BoundedSum` bounds each user where it adds them up: a vector that is too long is shortened, one that is not finite is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.base.errors import PrivacyError


@dataclass(frozen=True, kw_only=True)
class BoundedSum:
    """The sum over users of one vector each, of L2 norm at most `bound`.

    Made by the functions here, and by `client.training.per_user_gradients.Clip`; by nothing else.

    Args:
        parts: Name -> float64 tensor of any shape; the vector is all of them, in this order.
        bound: Infinite only where privacy is off.
        votes: float64 scalar. Sum over users of 1/2 where the user's vector was not shortened and -1/2 where it was, for a
            bound that adapts; None where nothing adapts.

    | given | result |
    |---|---|
    | no part | dimension 0 |
    | no user | zeros |
    | a user's vector that is too long | shortened to the bound |
    | a user's vector with NaN or infinity | counts as zero |
    | a bound of 0 or NaN; a part that is not float64 | `PrivacyError` |
    """

    parts: Mapping[str, Tensor]
    bound: float
    votes: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.bound > 0 or any(part.dtype != torch.float64 for part in self.parts.values()):
            raise PrivacyError(f"a sum of bound {self.bound} over parts that are not all float64")

    @property
    def dimension(self) -> int:
        """Coordinates of the vector."""
        return sum(part.numel() for part in self.parts.values())

    def plus(self, other: BoundedSum) -> BoundedSum:
        """The sum over the users of both; no user is in both."""
        if self.bound != other.bound or list(self.parts) != list(other.parts):
            raise PrivacyError("two sums of different bounds or parts")
        votes = None if self.votes is None or other.votes is None else self.votes + other.votes
        parts = {name: part + other.parts[name] for name, part in self.parts.items()}
        return BoundedSum(parts=parts, bound=self.bound, votes=votes)

    def vector(self, names: Iterable[str] | None = None, *, vote: float = 0.0) -> NDArray[np.float64]:
        """The whole vector, or some parts of it, in one piece on the processor; float64 (dimension,).

        Args:
            vote: Scale of the votes on the clip, appended as one more coordinate; 0 appends none.
        """
        chosen = [self.parts[name].reshape(-1) for name in (self.parts if names is None else names)]
        if vote:
            assert self.votes is not None
            chosen.append(vote * self.votes.reshape(1))
        if not chosen:
            return np.zeros(0)
        vector: NDArray[np.float64] = torch.cat(chosen).cpu().numpy()
        return vector


def nothing(shapes: Mapping[str, tuple[int, ...]], *, bound: float, device: torch.device | None = None) -> BoundedSum:
    """The sum over no user."""
    zeros = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
    return BoundedSum(parts=zeros, bound=bound, votes=torch.zeros((), dtype=torch.float64, device=device))


def of_contributions(contributions: NDArray[np.float64], *, bound: float = 1.0) -> BoundedSum:
    """The sum of users' vectors, each shortened to the bound.

    Args:
        contributions: float64 (users, width). A row that is not finite counts as zero.

    >>> of_contributions(np.array([[3.0, 4.0], [0.0, 0.5], [np.nan, 0.1]])).vector()
    array([0.6, 1.3])
    """
    finite = np.where(np.isfinite(contributions).all(axis=1, keepdims=True), contributions, 0.0)
    # Divided by the largest first, so that no square overflows.
    largest = np.maximum(np.abs(finite).max(1, initial=0.0), bound)[:, None]
    parts = finite / largest
    norms = np.linalg.norm(parts, axis=1, keepdims=True)
    bounded = parts * np.minimum(largest, bound / np.maximum(norms, np.finfo(float).tiny))
    return BoundedSum(parts={"sum": torch.from_numpy(bounded.sum(0))}, bound=bound)


def of_choices(choices: Iterable[NDArray[np.int32]], *, width: int, most: int) -> BoundedSum:
    """The sum of users' choices: 1 / sqrt(most) at each of at most `most` distinct places, an L2 norm of at most 1.

    Args:
        choices: Each user's places, in [0, width); of more than `most` distinct ones the first count.

    >>> of_choices([np.array([0, 2, 2], np.int32), np.array([2], np.int32)], width=3, most=4).vector()
    array([0.5, 0. , 1. ])
    """
    counts = np.zeros(width)
    for chosen in choices:
        _, first = np.unique(chosen, return_index=True)
        counts[chosen[np.sort(first)[:most]]] += 1
    return BoundedSum(parts={"sum": torch.from_numpy(counts / math.sqrt(most))}, bound=1.0)
