"""A frozen map with low-rank changes that are the same for all examples, taken into its weight.

With W' = W + sum_i s_i B_i A_i the map is one product, x W'^T + b, and so is the way back, dx = dy W': the changes cost nothing
per token, where beside the product each of them reads and writes all of y. What is asked of them, the gradient of every
example's own copy of a factor, needs no product of the map's size:

    u_i = x A_i^T      du_i = s_i dy B_i      dA_i = du_i^T x      dB_i = s_i dy^T u_i

In bfloat16 W' is rounded as W was, an error of the size of the one that y has by being bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from shared.frozen import FrozenMap, affine

Place = tuple[float, int, int]
"""Scale of a change, and the outputs at which it begins and ends."""


class Merged:
    """The map for one call forward and one back.

    Args:
        factors: A_1, B_1, A_2 ..., each (r, d) or (k, r), or copies (n, ...) that are one in memory.
        dtype: Of the products.

    `map` is the merged map.
    """

    def __init__(self, frozen: FrozenMap, places: Sequence[Place], factors: Sequence[Tensor], dtype: torch.dtype) -> None:
        self._places = places
        self._dtypes = [factor.dtype for factor in factors]
        # All copies are one.
        once = [factor if factor.dim() == 2 else factor[0] for factor in factors]
        self._as = [a.to(dtype) for a in once[::2]]
        self._bs = [(b * scale).to(dtype) for b, (scale, *_) in zip(once[1::2], places, strict=True)]
        self.map = self._with_changes(frozen) if once else frozen

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """x (m, d) to (m, k), and `plus`."""
        return affine(x, self.map, plus=plus)

    def back(self, dy: Tensor, *, into: Tensor | None = None) -> Tensor:
        """dx (m, d) from dy (m, k), added to `into` in place if given."""
        return dy @ self.map.weight if into is None else into.addmm_(dy, self.map.weight)

    def touched(self) -> tuple[bool, bool, bool]:
        """Which of three stacked parts the changes lie in."""
        spans = map(self.map.place, range(3))
        first, second, third = (any(start < end and begin < stop for _, start, stop in self._places) for begin, end in spans)
        return first, second, third

    def gradients(self, dy: Tensor, x: Tensor | None, n: int, needs: Sequence[bool]) -> list[Tensor | None]:
        """Of every example's own copy of each factor, (n, r, d) or (n, k, r), or None where it is not asked for.

        Args:
            dy: (m, k).
            x: (m, d); None will do where nothing is asked for.
            n: Examples, of m / n tokens each.
            needs: Of which factors.
        """
        found: list[Tensor | None] = [None] * len(needs)
        if x is None:
            return found
        outs = [dy[:, start:stop] for _, start, stop in self._places]
        sizes = [len(a) for a in self._as]
        if any(needs[::2]):
            du = torch.cat([out @ b for out, b in zip(outs, self._bs, strict=True)], 1)
            for at, d_a in enumerate(torch.split(torch.bmm(_by_example(du, n).transpose(1, 2), _by_example(x, n)), sizes, 1)):
                found[2 * at] = d_a.to(self._dtypes[2 * at]) if needs[2 * at] else None
        if any(needs[1::2]):
            us = torch.split(x @ torch.cat(self._as).T, sizes, 1)
            for at, (out, u, (scale, *_)) in enumerate(zip(outs, us, self._places, strict=True)):
                if needs[2 * at + 1]:
                    # As (u^T dy)^T: the other order makes the kernel transpose the wide operand.
                    turned, wide = _by_example(u, n).transpose(1, 2), _by_example(out, n)
                    d_b = torch.baddbmm(dy.new_empty(()), turned, wide, beta=0, alpha=scale).transpose(1, 2)
                    # Turned and cast in one: what sums it over users reads it as one row each.
                    found[2 * at + 1] = d_b.to(self._dtypes[2 * at + 1], memory_format=torch.contiguous_format)
        return found

    def _with_changes(self, frozen: FrozenMap) -> FrozenMap:
        weight = frozen.weight.clone()
        for (_, start, stop), a, b in zip(self._places, self._as, self._bs, strict=True):
            weight[start:stop].addmm_(b, a)
        return replace(frozen, weight=weight)


def _by_example(rows: Tensor, n: int) -> Tensor:
    """(n t, k), whose rows may lie apart, as (n, t, k) without a copy."""
    return rows.view(n, -1, rows.shape[1])
