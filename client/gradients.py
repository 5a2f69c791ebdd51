"""Per-user gradients without hooks: every user has a copy of each factor, and autograd differentiates the copies.

`factor.expand(n, r, d)` copies no memory. The gradient of the summed loss with respect to the expanded tensor is
each user's own gradient, exactly, because a user's loss depends on that user's copy alone. A user with several
sequences is an index into the copies (`by_sequence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from client.mechanism import Mechanism

Losses = Callable[[Mapping[str, Tensor]], Tensor]
"""Parameters with a leading user axis -> loss of each user, (n,)."""


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """What a batch of users comes to.

    Args:
        sums: Name -> float32 sum of clipped gradients.
        below: float32 scalar. How many users' gradients were no longer than the bound.
    """

    sums: dict[str, Tensor]
    below: Tensor

    def plus(self, other: Clipped) -> Clipped:
        """Both together."""
        return Clipped(sums={name: value + other.sums[name] for name, value in self.sums.items()}, below=self.below + other.below)


def per_user(losses: Losses, parameters: Mapping[str, Tensor], users: int) -> dict[str, Tensor]:
    """Gradient of each user's loss, name -> float32 (users, *shape)."""
    copies = {name: value.detach().expand(users, *value.shape).requires_grad_() for name, value in parameters.items()}
    total = losses(copies).sum()
    gradients = torch.autograd.grad(total, list(copies.values()), materialize_grads=True)
    return {name: gradient.float() for name, gradient in zip(copies, gradients, strict=True)}


def by_sequence(losses: Losses, owner: Tensor, users: int) -> Losses:
    """Losses of users from losses of their sequences: a user's loss is the mean over his own.

    Args:
        losses: Takes one copy per sequence and gives one loss per sequence.
        owner: int64 (sequences,). The user of each sequence, below `users`.
    """
    counts = torch.zeros(users, device=owner.device).index_add_(0, owner, torch.ones(len(owner), device=owner.device))

    def of_users(copies: Mapping[str, Tensor]) -> Tensor:
        each = losses({name: value.index_select(0, owner) for name, value in copies.items()})
        # A user without a sequence has loss 0 and, with it, gradient 0.
        return torch.zeros(users, device=each.device).index_add(0, owner, each) / counts.clamp(min=1.0)

    return of_users


def clip(gradients: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism) -> Clipped:
    """Sum over users of gradients clipped by their joint norm, float32.

    Args:
        gradients: Name -> (users, *shape).
        real: bool (users,). False on rows that only fill a fixed shape; they weigh exactly nothing.
    """
    flat = {name: gradient.flatten(1) for name, gradient in gradients.items()}
    squared = torch.stack([torch.linalg.vector_norm(part, dim=1).square() for part in flat.values()]).sum(0)
    weights = torch.where(real, mechanism.weights(squared), 0.0)
    if squared.device.type != "cpu" or not bool(torch.isfinite(squared).all()):
        # 0 * NaN is NaN: a row that weighs nothing must not be in the product. A GPU is not asked whether there is one:
        # it would have to stop for the answer.
        flat = {name: torch.where((weights > 0)[:, None], part, 0.0) for name, part in flat.items()}
    return Clipped(
        sums={name: (weights @ part).view(gradients[name].shape[1:]) for name, part in flat.items()},
        below=(real & (squared <= mechanism.clip**2)).sum().float(),
    )


def clipped_sum(losses: Losses, parameters: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism) -> Clipped:
    """`clip` of `per_user`."""
    return clip(per_user(losses, parameters, len(real)), real, mechanism)
