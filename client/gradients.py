"""Per-user gradients without hooks: every user has a copy of each factor, and autograd differentiates the copies.

`factor.expand(n, r, d)` copies no memory. The gradient of the summed loss with respect to the expanded tensor is
each user's own gradient, exactly, because a user's loss depends on that user's copy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from client.mechanism import Mechanism

Losses = Callable[[Mapping[str, Tensor]], Tensor]
"""Parameters with a leading user axis -> loss of each user, (n,)."""


def per_user(losses: Losses, parameters: Mapping[str, Tensor], users: int) -> dict[str, Tensor]:
    """Gradient of each user's loss, name -> float32 (users, *shape)."""
    copies = {name: value.detach().expand(users, *value.shape).requires_grad_() for name, value in parameters.items()}
    total = losses(copies).sum()
    gradients = torch.autograd.grad(total, list(copies.values()), materialize_grads=True)
    return {name: gradient.float() for name, gradient in zip(copies, gradients, strict=True)}


def clipped_sum(losses: Losses, parameters: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism) -> dict[str, Tensor]:
    """Sum over users of gradients clipped by their joint norm, float32.

    Args:
        real: bool (users,). False on rows that only fill a fixed shape; they weigh exactly nothing.
    """
    gradients = per_user(losses, parameters, len(real))
    squared = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0)
    weights = torch.where(real, mechanism.weights(squared), 0.0)
    # where() and not a product: 0 * NaN is NaN.
    return {
        name: torch.einsum("n,n...->...", weights, torch.where(_column(weights > 0, gradient), gradient, 0.0))
        for name, gradient in gradients.items()
    }


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
