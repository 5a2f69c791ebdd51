"""A transformer layer with an adapter, and its derivative written out, for a processor.

Forward, with what the adapter changes of each map left out:

    m = attend(x W_s^T + b_s)         z = x + m W_o^T + b_o         y = LN(z)
    p = y W_u^T + b_u                 w = y + gelu(p) W_d^T + b_d   x' = LN(w)

It is one function to autograd, and the way back is the chain rule line by line. The small steps that autograd would take
(a sum for every value that is used twice, a copy of every scaled factor, a buffer for every gradient) cost as much as a
third of the matrix products on a processor; here sums happen inside the products, and a gradient is written over the last.

An adapter's factor comes either once, (r, d), and then without a gradient, or as a copy for each example, (n, r, d), where all
are one in memory (`factor.expand(n, r, d)`): they are multiplied as one and differentiated one by one, which is what private
training asks for (`client/gradients.py`). Copies that differ go the way of `shared/lora.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
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
    factors = [factor for each in changes for change in each for factor in (change.a, change.b)]
    places = tuple(tuple((change.scale, change.start, change.stop) for change in each) for each in changes)
    if torch.is_grad_enabled():
        return _Layer.apply(x, mask, frozen, places, *factors)  # type: ignore[no-any-return, no-untyped-call]
    n, t, h = x.shape
    stacked, mixing, up, down = _maps(frozen, places, factors, x.dtype)
    rows = x.reshape(n * t, h)
    mixed = mix(stacked(rows).view(n, t, 3 * h), mask, frozen.heads).values
    y = frozen.attention_norm(mixing(mixed.view(n * t, h), plus=rows))
    inner = F.gelu(up(y)) if changes[2] else affine_gelu(y, frozen.up)
    return frozen.output_norm(down(inner, plus=y)).view(n, t, h)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, frozen: FrozenLayer, places: tuple[tuple[_Place, ...], ...], *factors: Tensor
    ) -> Tensor:
        n, t, h = x.shape
        maps = stacked, mixing, up, down = _maps(frozen, places, factors, x.dtype)
        rows = x.reshape(n * t, h)
        attention = mix(stacked(rows).view(n, t, 3 * h), mask, frozen.heads)
        z = mixing(attention.values.view(n * t, h), plus=rows)
        y, *attention_moments = _norm(frozen.attention_norm, z)
        p = up(y)
        w = down(F.gelu(p), plus=y)
        out, *output_moments = _norm(frozen.output_norm, w)
        ctx.frozen, ctx.places, ctx.shape = frozen, places, (n, t, h)
        kept = [part for each in maps for part in (each.x, each.u)]
        ctx.save_for_backward(attention.parts, attention.shares, z, *attention_moments, p, w, *output_moments, *kept, *factors)
        return out.view(n, t, h)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        frozen: FrozenLayer = ctx.frozen
        n, t, h = ctx.shape
        parts, shares, z, z_mean, z_scale, p, w, w_mean, w_scale, *rest = ctx.saved_tensors
        maps = stacked, mixing, up, down = _maps(frozen, ctx.places, rest[8:], z.dtype, needs=ctx.needs_input_grad[4:])
        for place, each in enumerate(maps):
            each.x, each.u = rest[2 * place : 2 * place + 2]
        below = ctx.needs_input_grad[0]

        dw = _norm_back(frozen.output_norm, gradient.reshape(n * t, h), w, w_mean, w_scale)
        d_inner = down.back(dw, n)
        torch.ops.aten.gelu_backward.grad_input(d_inner, p, grad_input=d_inner)
        dy = up.back(d_inner, n, into=dw)
        dz = _norm_back(frozen.attention_norm, dy, z, z_mean, z_scale)
        d_mixed = mixing.back(dz, n)
        # With nothing to train below, only those of query, key and value are asked for that the adapter changes.
        d_stacked = derivative(d_mixed.view(n, t, h), parts, shares, ALL if below else stacked.touched())
        dx = stacked.back(d_stacked.view(n * t, 3 * h), n, into=dz, through=below)
        gradients = [gradient for each in maps for gradient in each.gradients]
        return (dx.view(n, t, h) if below else None, None, None, None, *gradients)


class _Map:
    """One frozen map with its changes, y = x W^T + b + sum_i s_i (x A_i^T) B_i^T.

    Then per example, with u_i = x A_i^T: dB_i = s_i dy^T u_i, du_i = s_i dy B_i, dA_i = du_i^T x; and dx = dy W + sum_i du_i A_i.

    Args:
        factors: A_1, B_1, A_2 ..., each (r, d) or (k, r), or copies of one (n, ...).
        needs: Whether the gradient of each is asked for.

    `x` (m, d) and `u` (m, R), all u_i side by side, are what a call met; None without a change. `gradients` is what `back` found.
    """

    def __init__(
        self, frozen: FrozenMap, places: Sequence[_Place], factors: Sequence[Tensor], dtype: torch.dtype, needs: Sequence[bool]
    ) -> None:
        self._frozen, self._places, self._needs = frozen, places, needs
        self._dtypes = [factor.dtype for factor in factors]
        # All copies are one.
        once = [factor if factor.dim() == 2 else factor[0] for factor in factors]
        self._a = torch.cat(once[::2]).to(dtype) if once else None
        self._bs = [(b * scale).to(dtype) for b, (scale, *_) in zip(once[1::2], places, strict=True)]
        self.gradients: list[Tensor | None] = [None] * len(factors)
        self.x: Tensor | None = None
        self.u: Tensor | None = None

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        y = affine(x, self._frozen, plus=plus)
        if self._a is not None:
            self.x, self.u = x, x @ self._a.T
            for (_, start, stop), b, u in zip(self._places, self._bs, self._split(self.u), strict=True):
                y[:, start:stop].addmm_(u, b.T)
        return y

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
        assert self.x is not None and self.u is not None
        if any(self._needs[::2]):
            for at, d_a in enumerate(self._split(torch.bmm(_by_example(du, n).transpose(1, 2), _by_example(self.x, n)))):
                self.gradients[2 * at] = d_a.to(self._dtypes[2 * at]) if self._needs[2 * at] else None
        for at, (out, u, (scale, *_)) in enumerate(zip(outs, self._split(self.u), self._places, strict=True)):
            if self._needs[2 * at + 1]:
                # As (u^T dy)^T: the other order makes the kernel transpose the wide operand.
                d_b = torch.bmm(_by_example(u, n).transpose(1, 2), _by_example(out, n)).transpose(1, 2)
                self.gradients[2 * at + 1] = d_b.to(self._dtypes[2 * at + 1]) * scale

    def _split(self, side_by_side: Tensor) -> Sequence[Tensor]:
        return torch.split(side_by_side, [b.shape[1] for b in self._bs], 1)


def _maps(
    frozen: FrozenLayer,
    places: tuple[tuple[_Place, ...], ...],
    factors: Sequence[Tensor],
    dtype: torch.dtype,
    needs: Sequence[bool] | None = None,
) -> tuple[_Map, _Map, _Map, _Map]:
    ends = list(accumulate((2 * len(each) for each in places), initial=0))
    wanted = needs or [False] * len(factors)

    def at(place: int, of: FrozenMap) -> _Map:
        span = slice(ends[place], ends[place + 1])
        return _Map(of, places[place], factors[span], dtype, wanted[span])

    return at(0, frozen.stacked), at(1, frozen.mixing), at(2, frozen.up), at(3, frozen.down)


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
