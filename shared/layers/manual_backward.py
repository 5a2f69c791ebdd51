"""A transformer layer with an adapter, and its derivative written out, for a processor.

Forward, with what the adapter changes of each map left out:

    m = attend(x W_s^T + b_s)     z = x + m W_o^T + b_o           y = LN(z)
    p = y W_u^T + b_u             w = y + gelu(p) W_d^T + b_d     x' = LN(w)

Each line is one function to autograd, and the way back is the chain rule step by step. The small steps that autograd would take
(a sum for every value that is used twice, a copy of every scaled factor, a buffer for every gradient) cost as much as a
third of the matrix products on a processor; here sums happen inside the products, and a gradient is written over the last.

An adapter's factor comes either once, (r, d), and then without a gradient, or as a copy for each example, (n, r, d), where all
are one in memory (`factor.expand(n, r, d)`): they are multiplied as one and differentiated one by one
(`shared/layers/merged_maps.py`), which is what private training asks for (`client/training/per_user_gradients.py`). Copies that
differ go the way of `shared/layers/lora.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.layers import reference_path as plain
from shared.layers.attention import ALL, derivative, mix
from shared.layers.frozen_maps import FrozenLayer, FrozenMap, FrozenNorm, affine_gelu
from shared.layers.lora import Change
from shared.layers.merged_maps import Merged, Place

Changes = Sequence[Sequence[Change]]
"""What the adapter changes of the stacked, mixing, up and down maps."""
_T = TypeVar("_T")


def backward_suits(x: Tensor, changes: Changes) -> bool:
    """Whether `backward_layer` can do it: on a processor, and every factor given once, or as copies that are all one.

    The compiler is left to see the small steps, which it joins by itself.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling() or plain.asked():
        return False
    return all(change.for_all for each in changes for change in each)


def backward_layer(x: Tensor, mask: Tensor, frozen: FrozenLayer, changes: Changes) -> Tensor:
    """The layer's output.

    Args:
        x: (n, t, h).
        mask: bool (n, t), True where a token may be attended to. Each row needs one at least.

    Returns:
        (n, t, h), in the dtype of x.
    """
    places = [tuple((change.scale, change.start, change.stop) for change in each) for each in changes]
    stacked, mixing, up, down = ([factor for change in each for factor in (change.a, change.b)] for each in changes)
    y = _Attention.apply(x, mask, frozen, places[:2], *stacked, *mixing)  # type: ignore[no-untyped-call]
    return _Inner.apply(y, frozen, places[2:], *up, *down)  # type: ignore[no-any-return, no-untyped-call]


class _Attention(torch.autograd.Function):
    """x to y."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, frozen: FrozenLayer, places: Sequence[Sequence[Place]], *factors: Tensor
    ) -> Tensor:
        n, t, h = x.shape
        stacked, mixing = _pair(frozen.stacked, frozen.mixing, places, factors, x.dtype)
        rows = x.reshape(n * t, h)
        attention = mix(stacked(rows).view(n, t, 3 * h), mask, frozen.heads)
        mixed = attention.values.view(n * t, h)
        z = mixing(mixed, plus=rows)
        y, *moments = _norm(frozen.attention_norm, z)
        ctx.norm, ctx.maps, ctx.needs = frozen.attention_norm, (stacked, mixing), halves(ctx.needs_input_grad[4:], places)
        ctx.save_for_backward(*_asked((rows, mixed), ctx.needs), attention.parts, attention.shares, z, *moments)
        return y.view(n, t, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        n, t, h = dy.shape
        x, mixed, parts, shares, z, mean, scale = ctx.saved_tensors
        stacked, mixing = ctx.maps
        below: bool = ctx.needs_input_grad[0]
        dz = _norm_back(ctx.norm, dy.reshape(n * t, h), z, mean, scale)
        of_mixing = mixing.gradients(dz, mixed, n, ctx.needs[1])
        d_mixed = mixing.back(dz).view(n, t, h)
        # With nothing to train below, only those of query, key and value are asked for that the adapter changes.
        d_stacked = derivative(d_mixed, parts, shares, ALL if below else stacked.touched()).view(n * t, 3 * h)
        of_stacked = stacked.gradients(d_stacked, x, n, ctx.needs[0])
        dx = stacked.back(d_stacked, into=dz).view(n, t, h) if below else None
        return (dx, None, None, None, *of_stacked, *of_mixing)


class _Inner(torch.autograd.Function):
    """y to x'."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, frozen: FrozenLayer, places: Sequence[Sequence[Place]], *factors: Tensor) -> Tensor:
        n, t, h = y.shape
        up, down = _pair(frozen.up, frozen.down, places, factors, y.dtype)
        rows = y.reshape(n * t, h)
        # Without a gradient nothing will ask for p.
        p = up(rows) if any(ctx.needs_input_grad) else None
        inner = affine_gelu(rows, up.map) if p is None else F.gelu(p)
        w = down(inner, plus=rows)
        out, *moments = _norm(frozen.output_norm, w)
        ctx.norm, ctx.maps, ctx.needs = frozen.output_norm, (up, down), halves(ctx.needs_input_grad[3:], places)
        ctx.save_for_backward(*_asked((rows, inner), ctx.needs), p, w, *moments)
        return out.view(n, t, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n, t, h = gradient.shape
        y, inner, p, w, mean, scale = ctx.saved_tensors
        up, down = ctx.maps
        below: bool = ctx.needs_input_grad[0]
        dw = _norm_back(ctx.norm, gradient.reshape(n * t, h), w, mean, scale)
        of_down = down.gradients(dw, inner, n, ctx.needs[1])
        d_inner = down.back(dw)
        torch.ops.aten.gelu_backward.grad_input(d_inner, p, grad_input=d_inner)
        of_up = up.gradients(d_inner, y, n, ctx.needs[0])
        dy = up.back(d_inner, into=dw).view(n, t, h) if below else None
        return (dy, None, None, *of_up, *of_down)


def _pair(
    first: FrozenMap, second: FrozenMap, places: Sequence[Sequence[Place]], factors: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Merged, Merged]:
    own, others = halves(factors, places)
    return Merged.of(first, places[0], own, dtype), Merged.of(second, places[1], others, dtype)


def halves(factors: Sequence[_T], places: Sequence[Sequence[Place]]) -> tuple[Sequence[_T], Sequence[_T]]:
    """What belongs to the factors of the first map, and of the second."""
    end = 2 * len(places[0])
    return factors[:end], factors[end:]


def _asked(inputs: Sequence[Tensor], needs: Sequence[Sequence[bool]]) -> list[Tensor | None]:
    """The inputs of the maps of which a factor's gradient is asked for."""
    return [x if any(each) else None for x, each in zip(inputs, needs, strict=True)]


def _norm(frozen: FrozenNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised rows, their means and the inverses of their deviations."""
    return torch.native_layer_norm(x, x.shape[-1:], frozen.weight, frozen.bias, frozen.eps)


def _norm_back(frozen: FrozenNorm, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    back = torch.ops.aten.native_layer_norm_backward
    dx, *_ = back(dy, x, x.shape[-1:], mean, scale, frozen.weight, frozen.bias, [True, False, False])
    return cast(Tensor, dx)
