"""Per-user gradients without hooks: every user has a copy of each factor, and autograd differentiates the copies.

`factor.expand(n, r, d)` copies no memory. The gradient of the summed loss with respect to the expanded tensor is
each user's own gradient, exactly, because a user's loss depends on that user's copy alone. A user with several
sequences is an index into the copies (`by_sequence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from client.privacy.bounded_sum import BoundedSum
from client.privacy.mechanism import Mechanism
from shared.layers.lora import all_one
from shared.layers.torch_compile import Compiled

Losses = Callable[[Mapping[str, Tensor]], Tensor]
"""Parameters with a leading user axis -> loss of each user, (n,)."""
Flat = Mapping[str, Tensor]
"""Name -> float32 (users, elements)."""


def user_gradients(losses: Losses, parameters: Mapping[str, Tensor], users: int) -> dict[str, Tensor]:
    """Gradient of each user's loss, name -> float32 (users, *shape)."""
    copies = {name: value.detach().expand(users, *value.shape).requires_grad_() for name, value in parameters.items()}
    total = losses(copies).sum()
    gradients = torch.autograd.grad(total, list(copies.values()), materialize_grads=True)
    return {name: gradient.float() for name, gradient in zip(copies, gradients, strict=True)}


def by_sequence(losses: Losses, owner: Tensor, users: int) -> Losses:
    """Losses of users from losses of their sequences: a user's loss is the mean over their own.

    Args:
        losses: Takes one copy per sequence and gives one loss per sequence.
        owner: int64 (sequences,). The user of each sequence, below `users`.
    """
    counts = torch.zeros(users, device=owner.device).index_add_(0, owner, torch.ones(len(owner), device=owner.device))

    def of_users(copies: Mapping[str, Tensor]) -> Tensor:
        each = losses({name: _dealt(value, owner) for name, value in copies.items()})
        # A user without a sequence has loss 0 and, with it, gradient 0.
        return torch.zeros(users, device=each.device).index_add(0, owner, each) / counts.clamp(min=1.0)

    return of_users


def _dealt(copies: Tensor, owner: Tensor) -> Tensor:
    """`copies.index_select(0, owner)`: each sequence gets its user's copy."""
    if all_one(copies):
        # Then so are these, and nothing need be written out.
        return cast(Tensor, _DealtOnce.apply(copies, owner))  # type: ignore[no-untyped-call]
    return copies.index_select(0, owner)


class _DealtOnce(torch.autograd.Function):
    """`_dealt` of copies that are one; a user's gradient is the sum over their sequences' copies."""

    @staticmethod
    def forward(ctx: Any, copies: Tensor, owner: Tensor) -> Tensor:
        ctx.users = len(copies)
        ctx.save_for_backward(owner)
        return copies[0].expand(len(owner), *copies.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (owner,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.users, *gradient.shape[1:]).index_add_(0, owner, gradient), None


class Clip:
    """Clips the gradients of users by their joint norm, and sums them.

    Norms and sums are in float64, whose rounding `shared/secagg/fixed_point.py` accounts for to a million users a batch.

    Args:
        compiled: Whether it runs through torch.compile, which reads every gradient twice, and writes none.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        self._norms: Callable[[Flat], Tensor] = Compiled(_squared_norms) if compiled else _squared_norms
        self._sums: Callable[[Flat, Tensor, Tensor], dict[str, Tensor]] = Compiled(_sums_in_one_pass) if compiled else _sums

    def __call__(self, gradients: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism) -> BoundedSum:
        """The sum over users, each clipped to the mechanism's bound.

        Args:
            gradients: Name -> float32 (users, *shape).
            real: bool (users,). False on rows that only fill a fixed shape; they weigh exactly nothing.
        """
        flat = {name: gradient.flatten(1) for name, gradient in gradients.items()}
        if not has_float64(real.device):
            flat, real = {name: part.cpu() for name, part in flat.items()}, real.cpu()
        squared = self._norms(flat)
        sums = self._sums(flat, torch.where(real, mechanism.weights(squared), 0.0), squared)
        votes = None
        if mechanism.quantile is not None:
            votes = torch.where(real, torch.where(squared <= mechanism.clip**2, 0.5, -0.5), 0.0).double().sum()
        parts = {name: total.view(gradients[name].shape[1:]) for name, total in sums.items()}
        return BoundedSum(parts=parts, bound=mechanism.clip, votes=votes)


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's do not, and there the sums are made on the processor."""
    try:
        torch.ones(1, device=device).to(torch.float64)
    except (TypeError, RuntimeError):
        return False
    return True


def _squared_norms(flat: Flat) -> Tensor:
    norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in flat.values()]
    return torch.stack(norms).square().sum(0)


def _sums(flat: Flat, weights: Tensor, squared: Tensor) -> dict[str, Tensor]:
    """Weighted sums over users; 0 * NaN is NaN, so a row that is not finite must not be in the product."""
    out = ~torch.isfinite(squared)
    # A GPU is not asked whether there is one: it would have to stop for the answer.
    if out.device.type != "cpu" or bool(out.any()):
        flat = {name: part.masked_fill(out[:, None], 0.0) for name, part in flat.items()}
    return {name: weights @ part.double() for name, part in flat.items()}


def _sums_in_one_pass(flat: Flat, weights: Tensor, squared: Tensor) -> dict[str, Tensor]:
    """`_sums` for the compiler, which would leave a product to a library, and write out first what goes into it."""
    out = ~torch.isfinite(squared)[:, None]
    return {name: torch.where(out, 0.0, weights[:, None] * part.double()).sum(0) for name, part in flat.items()}


@cache
def clip_of(*, compiled: bool) -> Clip:
    """The one of this process: what was compiled for one round, or platform, serves the next."""
    return Clip(compiled=compiled)


clip = clip_of(compiled=False)


def clipped_sum(
    losses: Losses, parameters: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism, *, clip: Clip = clip
) -> BoundedSum:
    """`clip` of `user_gradients`."""
    return clip(user_gradients(losses, parameters, len(real)), real, mechanism)
