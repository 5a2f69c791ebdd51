"""Low-rank maps that take either one factor for all examples or one copy per example.

A per-example copy is `factor.expand(n, r, d)`: it takes no memory, and the gradient of the summed loss with
respect to it *is* every example's own gradient. That is how private training gets per-user gradients without
hooks (`client/gradients.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
"""Name -> factor, (r, d) shared by all examples or (n, r, d) with a copy for each."""


def apply(factor: Tensor, x: Tensor) -> Tensor:
    """x times the transpose of `factor`, per example where `factor` has copies.

    Args:
        factor: (k, d), or (n, k, d).
        x: (n, t, d), or (n, d).

    Returns:
        (n, t, k), or (n, k), in the dtype of `x`.
    """
    factor = factor.to(x.dtype)
    if factor.dim() == 2:
        return x @ factor.T
    if x.dim() == 2:
        return torch.bmm(factor, x.unsqueeze(-1)).squeeze(-1)
    return torch.bmm(x, factor.transpose(1, 2))


def delta(parameters: Parameters, name: str, x: Tensor, *, scale: float) -> Tensor | None:
    """The low-rank change `scale * B A x` of the map `name`, or None where the adapter does not touch it."""
    a = parameters.get(f"{name}.lora_A")
    if a is None:
        return None
    return apply(parameters[f"{name}.lora_B"], apply(a, x)) * scale
