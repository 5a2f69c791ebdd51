"""A transformer layer with an adapter in native kernels: what `shared/layers/manual_backward.py` computes, by blocks of rows.

On a processor a layer's products take less than half of its time; the rest is what lies between them, read from memory and
written there again. The kernels (`shared/layers/native/kernels`) carry a block of rows through a whole half of a layer before
the next one begins, so that GELU, softmax, sums and normalisations find their rows in the core's cache. What the way back needs
is written past the caches into memory that is kept from step to step; of GELU that is its slope, so that the way back is one
multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.layers import manual_backward as written
from shared.layers.frozen_maps import FrozenLayer, FrozenMap
from shared.layers.manual_backward import Changes, halves
from shared.layers.merged_maps import Place, touched

MOST_RANKS = 64
"""Of all changes of a map together."""


def kernels_suit(x: Tensor, changes: Changes) -> bool:
    """Whether `native_layer` can do it, if the kernels are there and know its widths (`shared/layers/native/build.py`)."""
    if x.dtype != torch.bfloat16 or not written.backward_suits(x, changes):
        return False
    return all(sum(change.a.shape[-2] for change in each) <= MOST_RANKS for each in changes)


def native_layer(x: Tensor, mask: Tensor, frozen: FrozenLayer, changes: Changes) -> Tensor:
    """The layer's output, as `shared.layers.manual_backward.backward_layer`; bfloat16."""
    maps = [_Map.of(of, each) for of, each in zip((frozen.stacked, frozen.mixing, frozen.up, frozen.down), changes, strict=True)]
    stacked, mixing, up, down = ([factor for change in each for factor in (change.a, change.b)] for each in changes)
    y = _Attention.apply(x.contiguous(), mask.contiguous(), frozen, maps[:2], *stacked, *mixing)  # type: ignore[no-untyped-call]
    return _Inner.apply(y, frozen, maps[2:], *up, *down)  # type: ignore[no-any-return, no-untyped-call]


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a text.

    Args:
        x: bfloat16 (n, t, h).
        mask: bool (n, t), True on the tokens that count.

    Returns:
        float32 (n, h); zero for a text without tokens.
    """
    return _Mean.apply(x.contiguous(), mask.contiguous())  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class _Map:
    """A map merged with its changes (`shared/layers/merged_maps.py`), as the kernels read it.

    Args:
        ahead, back: W'^T and W', columns in blocks.
        a, b: All A_i, one below the other (r, d), and all s_i B_i, side by side (k, r).
    """

    map: FrozenMap
    places: Sequence[Place]
    ranks: Sequence[int]
    dtypes: Sequence[torch.dtype]
    ahead: Tensor
    back: Tensor
    a: Tensor
    b: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, frozen: FrozenMap, changes: Sequence[Any]) -> _Map:
        places = [(change.scale, change.start, change.stop) for change in changes]
        factors = [factor for change in changes for factor in (change.a, change.b)]
        # All copies are one.
        once = [factor if factor.dim() == 2 else factor[0] for factor in factors]
        scales, starts = [place[0] for place in places], [place[1] for place in places]
        ahead, back, a, b = (
            torch.ops.fedfuse.merged(frozen.weight, once[::2], once[1::2], starts, scales) if once else frozen.packed
        )
        ranks, dtypes = [len(factor) for factor in once[::2]], [factor.dtype for factor in factors]
        return cls(map=frozen, places=places, ranks=ranks, dtypes=dtypes, ahead=ahead, back=back, a=a, b=b)

    def gradients(self, dy: Tensor, x: Tensor | None, needs: Sequence[bool]) -> list[Tensor | None]:
        """Of every example's own copy of each factor, (n, r, d) or (n, k, r), or None where it is not asked for.

        Args:
            dy: (n, t, k).
            x: (n, t, d); None will do where nothing is asked for.
        """
        if x is None:
            return [None] * len(needs)
        scales, starts, stops = zip(*self.places, strict=True)
        asked = any(needs[::2]), any(needs[1::2])
        found = torch.ops.fedfuse.factors(dy, x, self.a, self.b, self.ranks, starts, stops, scales, *asked)
        return [one.to(dtype) if need else None for one, dtype, need in zip(found, self.dtypes, needs, strict=True)]


class _Attention(torch.autograd.Function):
    """x to LN(x + attention's output)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, frozen: FrozenLayer, maps: Sequence[_Map], *factors: Tensor) -> Tensor:
        stacked, mixing = maps
        norm, keep = frozen.attention_norm, any(ctx.needs_input_grad)
        ctx.norm, ctx.maps, ctx.needs = norm, maps, halves(ctx.needs_input_grad[4:], [each.places for each in maps])
        of_stacked, of_mixing = map(any, ctx.needs)
        y, parts, shares, mixed, sums, mean, scale = torch.ops.fedfuse.attention(
            x, mask, stacked.ahead, stacked.map.bias, mixing.ahead, mixing.map.bias, norm.weight, norm.bias, norm.eps,
            frozen.heads, keep, of_mixing,
        )  # fmt: skip
        if keep:
            ctx.save_for_backward(x if of_stacked else None, mixed if of_mixing else None, parts, shares, sums, mean, scale)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mixed, parts, shares, sums, mean, scale = ctx.saved_tensors
        stacked, mixing = ctx.maps
        below: bool = ctx.needs_input_grad[0]
        # With nothing to train below, only those of query, key and value are asked for that the adapter changes.
        wanted = (True, True, True) if below else touched(stacked.map, stacked.places)
        dx, d_parts, d_sums = torch.ops.fedfuse.attention_back(
            dy.contiguous(), parts, shares, sums, mean, scale, ctx.norm.weight, stacked.back, mixing.back, *wanted, below,
            mixed is not None,
        )  # fmt: skip
        of_stacked = stacked.gradients(d_parts, x, ctx.needs[0])
        of_mixing = mixing.gradients(d_sums, mixed, ctx.needs[1])
        return (dx if below else None, None, None, None, *of_stacked, *of_mixing)


class _Inner(torch.autograd.Function):
    """y to LN(y + the inner layer's output)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, frozen: FrozenLayer, maps: Sequence[_Map], *factors: Tensor) -> Tensor:
        n, t, h = y.shape
        up, down = maps
        norm, keep = frozen.output_norm, any(ctx.needs_input_grad)
        ctx.norm, ctx.maps, ctx.needs = norm, maps, halves(ctx.needs_input_grad[3:], [each.places for each in maps])
        of_up, of_down = map(any, ctx.needs)
        out, slopes, values, sums, mean, scale = torch.ops.fedfuse.inner(
            y.view(n * t, h), up.ahead, up.map.bias, down.ahead, down.map.bias, norm.weight, norm.bias, norm.eps, keep, of_down
        )
        if keep:
            values = values.view(n, t, -1) if of_down else None
            ctx.save_for_backward(y if of_up else None, values, slopes, sums, mean, scale)
        return out.view(n, t, h)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n, t, h = gradient.shape
        y, values, slopes, sums, mean, scale = ctx.saved_tensors
        up, down = ctx.maps
        below: bool = ctx.needs_input_grad[0]
        own = y is not None or values is not None
        dy, dp, dw = torch.ops.fedfuse.inner_back(
            gradient.reshape(n * t, h), slopes, sums, mean, scale, ctx.norm.weight, down.back, up.back, below, own
        )
        of_down = down.gradients(dw.view(-1, t, h), values, ctx.needs[1])
        of_up = up.gradients(dp.view(-1, t, slopes.shape[1]), y, ctx.needs[0])
        return (dy.view(n, t, h) if below else None, None, None, *of_up, *of_down)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.ops.fedfuse.mean(x, mask)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.ops.fedfuse.mean_back(gradient.contiguous(), mask), None
