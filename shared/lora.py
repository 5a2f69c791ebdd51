"""Low-rank maps that take either one factor for all examples or one copy per example.

A per-example copy is `factor.expand(n, r, d)`: it takes no memory, and the gradient of the summed loss with
respect to it *is* every example's own gradient. That is how private training gets per-user gradients without
hooks (`client/gradients.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Parameters = Mapping[str, Tensor]
"""Name -> factor, (r, d) shared by all examples or (n, r, d) with a copy for each."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The low-rank change `scale * B A x` of the outputs `start` to `stop` of a linear map.

    Args:
        a: (r, d), or (n, r, d).
        b: (k, r), or (n, k, r), with k = stop - start.
    """

    a: Tensor
    b: Tensor
    scale: float
    start: int
    stop: int

    @property
    def copied(self) -> bool:
        """Whether a factor has a copy for each example."""
        return any(getattr(factor, "ndim", 2) == 3 for factor in (self.a, self.b))


def apply(factor: Tensor | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """x times the transpose of `factor`, per example where `factor` has copies.

    Args:
        factor: (k, d), or (n, k, d), or a module that stands for one and does it itself (`client/engines.py`).
        x: (n, t, d), or (n, d).

    Returns:
        (n, t, k), or (n, k), in the dtype of `x`.
    """
    if not isinstance(factor, Tensor):
        return factor(x)
    factor = factor.to(x.dtype)
    if factor.dim() == 2:
        return x @ factor.T
    if x.dim() == 2:
        return torch.bmm(factor, x.unsqueeze(-1)).squeeze(-1)
    return torch.bmm(x, factor.transpose(1, 2))


def linear(x: Tensor, weight: Tensor, bias: Tensor, changes: Sequence[Change] = ()) -> Tensor:
    """The frozen map `x W^T + b` with low-rank changes of some of its outputs.

    Args:
        x: (n, t, d).
        weight: (k, d); several maps of one input may be stacked in it.
        changes: None of a stack's outputs need have one, or each may have several.

    Returns:
        (n, t, k).
    """
    copied = [change for change in changes if change.copied]
    if not copied:
        y = F.linear(x, weight, bias)
        for change in changes:
            y[..., change.start : change.stop] += apply(change.b, apply(change.a, x)) * change.scale
        return y
    places = tuple((change.scale, change.start, change.stop) for change in copied)
    factors = [_copies(factor, len(x), x.dtype) for change in copied for factor in (change.a, change.b)]
    y = cast(Tensor, _PerExample.apply(x, weight, bias, places, *factors))  # type: ignore[no-untyped-call]
    for change in changes:
        if not change.copied:
            # One for all examples (a residual, whose rank may be large), so it is not copied for each.
            part = apply(change.b, apply(change.a, x)) * change.scale
            y = y + F.pad(part, (change.start, len(weight) - change.stop))
    return y


def changes_of(parameters: Parameters, name: str, *, scale: float, start: int, stop: int) -> list[Change]:
    """What the adapter changes of the map `name`, whose outputs stand at `start` to `stop`; empty if it has no part in it."""
    a = parameters.get(f"{name}.lora_A")
    if a is None:
        return []
    core = parameters.get(f"{name}.lora_R")
    factors = [(a if core is None else _product(core, a), parameters[f"{name}.lora_B"])]
    if f"{name}.residual_A" in parameters:
        factors.append((parameters[f"{name}.residual_A"], parameters[f"{name}.residual_B"]))
    return [Change(a=a, b=b, scale=scale, start=start, stop=stop) for a, b in factors]


def all_one(copies: Tensor) -> bool:
    """Whether copies (n, ...) are one in memory, as `factor.expand(n, ...)` makes them."""
    return len(copies) == 1 or (copies.stride(0) == 0 and not copies.is_contiguous())


def _product(core: Tensor, a: Tensor) -> Tensor:
    """R A, per example where R has copies; a module that stands for R is asked after A."""
    return core @ a if isinstance(core, Tensor) else cast(Tensor, lambda x: apply(core, apply(a, x)))


def changed(x: Tensor, changes: Sequence[Change]) -> Tensor:
    """x plus its own changes, for a map that has no frozen weight: (n, d) to (n, d)."""
    # Every change is of the x that came in, not of what an earlier change made of it.
    parts = [apply(change.b, apply(change.a, x)) * change.scale for change in changes]
    return sum(parts, start=x)


def _copies(factor: Tensor, examples: int, dtype: torch.dtype) -> Tensor:
    if factor.dim() == 2:
        return factor.to(dtype).expand(examples, *factor.shape)
    if all_one(factor):
        # Cast that one. Autograd still sees a function of every copy.
        return _CastOnce.apply(factor, dtype)  # type: ignore[no-any-return, no-untyped-call]
    return factor.to(dtype)


class _CastOnce(torch.autograd.Function):
    """`expanded.to(dtype)` without making the copies; the gradient of the copies passes as it is."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = factor.dtype
        return factor[0].to(dtype).expand(factor.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


class _PerExample(torch.autograd.Function):
    """`linear` with a copy of each factor per example, and its derivative written out.

    With u = x A^T for all A stacked, y = x W^T + b + s u B^T. Then, per example, dB = s dy^T u, du = s dy B, dA = du^T x
    and dx = dy W + du A. Written out because autograd's own road makes a full-size product, a scaled copy and a sum of
    every change and every gradient: on a processor they took as long as a third of the matrix products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, places: tuple[tuple[float, int, int], ...], *factors: Tensor
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        stacked = torch.cat(factors[::2], 1) if len(places) > 1 else factors[0]
        inner = torch.bmm(x, stacked.transpose(1, 2))
        parts = [part.contiguous() for part in torch.split(inner, [factor.shape[1] for factor in factors[::2]], 2)]
        for (scale, start, stop), part, b in zip(places, parts, factors[1::2], strict=True):
            y[..., start:stop].baddbmm_(part, b.transpose(1, 2), alpha=scale)
        ctx.places = places
        ctx.save_for_backward(x, weight, stacked, *parts, *factors[1::2])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, stacked, *rest = ctx.saved_tensors
        count = len(ctx.places)
        parts, bs = rest[:count], rest[count:]
        needs = ctx.needs_input_grad[4:]
        back = ctx.needs_input_grad[0] or any(needs[::2])
        d_bs: list[Tensor | None] = []
        d_parts: list[Tensor] = []
        for place, (scale, start, stop) in enumerate(ctx.places):
            out = dy[..., start:stop]
            # As (u^T dy)^T: the other order makes the kernel transpose the wide operand.
            d_bs.append((torch.bmm(parts[place].transpose(1, 2), out) * scale).transpose(1, 2) if needs[2 * place + 1] else None)
            if back:
                d_parts.append(torch.bmm(out, bs[place]) * scale)
        d_as: list[Tensor | None] = [None] * count
        dx = None
        if back:
            d_inner = torch.cat(d_parts, 2) if count > 1 else d_parts[0]
            if any(needs[::2]):
                d_as = list(torch.split(torch.bmm(d_inner.transpose(1, 2), x), [part.shape[2] for part in parts], 1))
            if ctx.needs_input_grad[0]:
                dx = (dy @ weight).baddbmm_(d_inner, stacked)
        gradients = [gradient for pair in zip(d_as, d_bs, strict=True) for gradient in pair]
        return (dx, None, None, None, *gradients)
