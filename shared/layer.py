"""A transformer layer with an adapter, and its derivative written out, for a processor.

Forward, with what the adapter changes of each map left out:

    m = attend(x W_s^T + b_s)     z = x + m W_o^T + b_o           y = LN(z)
    p = y W_u^T + b_u             w = y + gelu(p) W_d^T + b_d     x' = LN(w)

Each line is one function to autograd, and the way back is the chain rule step by step. The small steps that autograd would take
(a sum for every value that is used twice, a copy of every scaled factor, a buffer for every gradient) cost as much as a
third of the matrix products on a processor; here sums happen inside the products, and a gradient is written over the last.

An adapter's factor comes either once, (r, d), and then without a gradient, or as a copy for each example, (n, r, d), where all
are one in memory (`factor.expand(n, r, d)`): they are multiplied as one and differentiated one by one, which is what private
training asks for (`client/gradients.py`). Copies that differ go the way of `shared/lora.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.attention import ALL, derivative, mix
from shared.frozen import FrozenLayer, FrozenMap, FrozenNorm, affine, affine_gelu
from shared.lora import Change, all_one

Changes = Sequence[Sequence[Change]]
"""What the adapter changes of the stacked, mixing, up and down maps."""
_Place = tuple[float, int, int]


def suits(x: Tensor, changes: Changes) -> bool:
    """Whether `layer` can do it: on a processor, and every factor given once, or as copies that are all one.

    The compiler is left to see the small steps, which it joins by itself.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    factors = [factor for each in changes for change in each for factor in (change.a, change.b)]
    return all(isinstance(f, Tensor) and (all_one(f) if f.dim() == 3 else not _differentiated(f)) for f in factors)


def layer(x: Tensor, mask: Tensor, frozen: FrozenLayer, changes: Changes) -> Tensor:
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
        ctx: Any, x: Tensor, mask: Tensor, frozen: FrozenLayer, places: Sequence[Sequence[_Place]], *factors: Tensor
    ) -> Tensor:
        n, t, h = x.shape
        stacked, mixing = _pair(frozen.stacked, frozen.mixing, places, factors, x.dtype)
        rows = x.reshape(n * t, h)
        attention = mix(stacked(rows).view(n, t, 3 * h), mask, frozen.heads)
        z = mixing(attention.values.view(n * t, h), plus=rows)
        y, *moments = _norm(frozen.attention_norm, z)
        ctx.norm, ctx.maps = frozen.attention_norm, (stacked, mixing)
        ctx.save_for_backward(*stacked.leave(), *mixing.leave(), attention.parts, attention.shares, z, *moments)
        return y.view(n, t, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        n, t, h = dy.shape
        *met, parts, shares, z, mean, scale = ctx.saved_tensors
        stacked, mixing = _resumed(ctx.maps, met, ctx.needs_input_grad[4:])
        below = ctx.needs_input_grad[0]
        dz = _norm_back(ctx.norm, dy.reshape(n * t, h), z, mean, scale)
        d_mixed = mixing.back(dz, n).view(n, t, h)
        # With nothing to train below, only those of query, key and value are asked for that the adapter changes.
        d_stacked = derivative(d_mixed, parts, shares, ALL if below else stacked.touched()).view(n * t, 3 * h)
        dx = stacked.back(d_stacked, n, into=dz, through=below)
        return (dx.view(n, t, h) if below else None, None, None, None, *stacked.gradients, *mixing.gradients)


class _Inner(torch.autograd.Function):
    """y to x'."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, frozen: FrozenLayer, places: Sequence[Sequence[_Place]], *factors: Tensor) -> Tensor:
        n, t, h = y.shape
        up, down = _pair(frozen.up, frozen.down, places, factors, y.dtype)
        rows = y.reshape(n * t, h)
        # Without a gradient nothing will ask for p.
        p = up(rows) if any(ctx.needs_input_grad) or places[0] else None
        w = down(affine_gelu(rows, frozen.up) if p is None else F.gelu(p), plus=rows)
        out, *moments = _norm(frozen.output_norm, w)
        ctx.norm, ctx.maps = frozen.output_norm, (up, down)
        ctx.save_for_backward(*up.leave(), *down.leave(), p, w, *moments)
        return out.view(n, t, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n, t, h = gradient.shape
        *met, p, w, mean, scale = ctx.saved_tensors
        up, down = _resumed(ctx.maps, met, ctx.needs_input_grad[3:])
        below = ctx.needs_input_grad[0]
        dw = _norm_back(ctx.norm, gradient.reshape(n * t, h), w, mean, scale)
        d_inner = down.back(dw, n)
        torch.ops.aten.gelu_backward.grad_input(d_inner, p, grad_input=d_inner)
        dy = up.back(d_inner, n, into=dw, through=below)
        return (dy.view(n, t, h) if below else None, None, None, *up.gradients, *down.gradients)


class _Map:
    """One frozen map with its changes, y = x W^T + b + sum_i s_i (x A_i^T) B_i^T.

    Then per example, with u_i = x A_i^T: dB_i = s_i dy^T u_i, du_i = s_i dy B_i, dA_i = du_i^T x; and dx = dy W + sum_i du_i A_i.

    Args:
        factors: A_1, B_1, A_2 ..., each (r, d) or (k, r), or copies of one (n, ...).

    `met` is what a call met: x (m, d) and u (m, R), all u_i side by side, or None twice without a change. `needs` says of which
    factors the gradient is asked for, and `gradients` is what `back` found.
    """

    def __init__(self, frozen: FrozenMap, places: Sequence[_Place], factors: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._frozen, self._places = frozen, places
        self._dtypes = [factor.dtype for factor in factors]
        # All copies are one.
        once = [factor if factor.dim() == 2 else factor[0] for factor in factors]
        self._a = torch.cat(once[::2]).to(dtype) if once else None
        self._bs = [(b * scale).to(dtype) for b, (scale, *_) in zip(once[1::2], places, strict=True)]
        self.met: tuple[Tensor | None, Tensor | None] = (None, None)
        self.needs: Sequence[bool] = ()
        self.gradients: list[Tensor | None] = [None] * len(factors)

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        y = affine(x, self._frozen, plus=plus)
        if self._a is not None:
            u = x @ self._a.T
            self.met = x, u
            for (_, start, stop), b, part in zip(self._places, self._bs, self._split(u), strict=True):
                y[:, start:stop].addmm_(part, b.T)
        return y

    def leave(self) -> tuple[Tensor | None, Tensor | None]:
        """`met`, handed over to autograd, which frees it as soon as it can."""
        met, self.met = self.met, (None, None)
        return met

    def back(self, dy: Tensor, n: int, *, into: Tensor | None = None, through: bool = True) -> Tensor:
        """dx, added to `into` in place if given.

        Args:
            dy: (m, k).
            n: Examples, of m / n tokens each.
            through: Whether dx is asked for; if not, what is returned means nothing.
        """
        du = None
        if self._a is not None:
            outs = [dy[:, start:stop] for _, start, stop in self._places]
            du = torch.cat([out @ b for out, b in zip(outs, self._bs, strict=True)], 1)
            self._differentiate(outs, du, n)
        if not through:
            return dy
        dx = dy @ self._frozen.weight if into is None else into.addmm_(dy, self._frozen.weight)
        return dx if du is None or self._a is None else dx.addmm_(du, self._a)

    def touched(self) -> tuple[bool, bool, bool]:
        """Which of three stacked parts the changes lie in."""
        spans = map(self._frozen.place, range(3))
        first, second, third = (any(start < end and begin < stop for _, start, stop in self._places) for begin, end in spans)
        return first, second, third

    def _differentiate(self, outs: Sequence[Tensor], du: Tensor, n: int) -> None:
        x, us = self.leave()
        assert x is not None and us is not None
        if any(self.needs[::2]):
            for at, d_a in enumerate(self._split(torch.bmm(_by_example(du, n).transpose(1, 2), _by_example(x, n)))):
                self.gradients[2 * at] = d_a.to(self._dtypes[2 * at]) if self.needs[2 * at] else None
        for at, (out, u, (scale, *_)) in enumerate(zip(outs, self._split(us), self._places, strict=True)):
            if self.needs[2 * at + 1]:
                # As (u^T dy)^T: the other order makes the kernel transpose the wide operand.
                turned, dy = _by_example(u, n).transpose(1, 2), _by_example(out, n)
                d_b = torch.baddbmm(dy.new_empty(()), turned, dy, beta=0, alpha=scale).transpose(1, 2)
                # Turned and cast in one: what sums it over users reads it as one row each.
                self.gradients[2 * at + 1] = d_b.to(self._dtypes[2 * at + 1], memory_format=torch.contiguous_format)

    def _split(self, side_by_side: Tensor) -> Sequence[Tensor]:
        return torch.split(side_by_side, [b.shape[1] for b in self._bs], 1)


def _pair(
    first: FrozenMap, second: FrozenMap, places: Sequence[Sequence[_Place]], factors: Sequence[Tensor], dtype: torch.dtype
) -> tuple[_Map, _Map]:
    end = 2 * len(places[0])
    return _Map(first, places[0], factors[:end], dtype), _Map(second, places[1], factors[end:], dtype)


def _resumed(maps: tuple[_Map, _Map], met: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[_Map, _Map]:
    first, second = maps
    end = len(first.gradients)
    first.met, second.met = (met[0], met[1]), (met[2], met[3])
    first.needs, second.needs = needs[:end], needs[end:]
    return maps


def _norm(frozen: FrozenNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised rows, their means and the inverses of their deviations."""
    return torch.native_layer_norm(x, x.shape[-1:], frozen.weight, frozen.bias, frozen.eps)


def _norm_back(frozen: FrozenNorm, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    back = torch.ops.aten.native_layer_norm_backward
    dx, *_ = back(dy, x, x.shape[-1:], mean, scale, frozen.weight, frozen.bias, [True, False, False])
    return cast(Tensor, dx)


def _by_example(rows: Tensor, n: int) -> Tensor:
    """(n t, k), whose rows may lie apart, as (n, t, k) without a copy."""
    return rows.view(n, -1, rows.shape[1])


def _differentiated(factor: Tensor) -> bool:
    return torch.is_grad_enabled() and factor.requires_grad
