"""Low-rank maps that take either one factor for all examples or one copy per example.

A per-example copy is `factor.expand(n, r, d)`: it takes no memory, and the gradient of the summed loss with
respect to it *is* every example's own gradient. That is how private training gets per-user gradients without
hooks (`client/training/per_user_gradients.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.layers import reference_path as plain
from shared.layers.frozen_maps import FrozenMap
from shared.layers.merged_maps import Merged, Place

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
    def for_all(self) -> bool:
        """Whether it is one for all examples, and gradients are asked for of copies at most, so that `Merged` can have it."""
        return all(
            isinstance(factor, Tensor) and (all_one(factor) if factor.dim() == 3 else not _differentiated(factor))
            for factor in (self.a, self.b)
        )


def apply(factor: Tensor | Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """x times the transpose of `factor`, per example where `factor` has copies.

    Args:
        factor: (k, d), or (n, k, d), or a module in the place of one that does it itself (`client/training/opacus_gradients.py`).
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


def linear(x: Tensor, frozen: FrozenMap, changes: Sequence[Change] = ()) -> Tensor:
    """The frozen map `x W^T + b` with low-rank changes of some of its outputs.

    Args:
        x: (n, t, d).
        changes: None of a stack's outputs need have one, or each may have several.

    Returns:
        (n, t, k).
    """
    if changes and not plain.asked() and all(change.for_all for change in changes):
        places = tuple((change.scale, change.start, change.stop) for change in changes)
        factors = [factor for change in changes for factor in (change.a, change.b)]
        return cast(Tensor, _Merged.apply(x, frozen, places, *factors))  # type: ignore[no-untyped-call]
    y = F.linear(x, frozen.weight, frozen.bias)
    for change in changes:
        part = apply(change.b, apply(change.a, x)) * change.scale
        y = y + F.pad(part, (change.start, len(frozen.weight) - change.stop))
    return y


def changes_of(parameters: Parameters, name: str, *, scale: float, start: int, stop: int) -> list[Change]:
    """What the adapter changes of the map `name`, for outputs `start` to `stop`; empty if it changes none of them."""
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


def _product(core: Tensor | Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """R A, per example where R has copies; a module in the place of R is called after A."""
    if isinstance(core, Tensor):
        once = core.dim() == 3 and all_one(core) and a.dim() == 2 and not _differentiated(a)
        return cast(Tensor, _ProductOnce.apply(core, a)) if once else core @ a  # type: ignore[no-untyped-call]
    return cast(Tensor, lambda x: apply(core, apply(a, x)))


class _ProductOnce(torch.autograd.Function):
    """`core @ a` of copies (n, r, r) that are one, without making the products' copies; A (r, d) has no gradient."""

    @staticmethod
    def forward(ctx: Any, core: Tensor, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (core[0] @ a).expand(len(core), -1, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        return gradient @ a.T, None


def changed(x: Tensor, changes: Sequence[Change]) -> Tensor:
    """x plus its own changes, for a map that has no frozen weight: (n, d) to (n, d)."""
    # Every change is of the x that came in, not of what an earlier change made of it.
    parts = [apply(change.b, apply(change.a, x)) * change.scale for change in changes]
    return sum(parts, start=x)


def _differentiated(factor: Tensor) -> bool:
    return torch.is_grad_enabled() and factor.requires_grad


class _Merged(torch.autograd.Function):
    """`Merged` as a function to autograd, and to the compiler, which lets only tensors pass from there to the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: FrozenMap, places: tuple[Place, ...], *factors: Tensor) -> Tensor:
        merged, rows = Merged.of(frozen, places, factors, x.dtype), x.reshape(-1, x.shape[-1])
        ctx.frozen, ctx.places, ctx.dtypes = frozen, places, merged.dtypes
        ctx.save_for_backward(rows if any(ctx.needs_input_grad[3:]) else None, merged.map.weight, merged.a, *merged.bs)
        return merged(rows).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, *bs = ctx.saved_tensors
        merged = Merged(map=replace(ctx.frozen, weight=weight), places=ctx.places, a=a, bs=bs, dtypes=ctx.dtypes)
        d_rows = dy.reshape(-1, dy.shape[-1])
        of_factors = merged.gradients(d_rows, rows, len(dy), ctx.needs_input_grad[3:])
        dx = merged.back(d_rows).view(*dy.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return (dx, None, None, *of_factors)
