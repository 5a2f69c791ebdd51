"""A frozen map with low-rank changes that are the same for all examples, taken into its weight.

With W' = W + sum_i s_i B_i A_i the map is one product, x W'^T + b, and so is the way back, dx = dy W': the changes cost nothing
per token, where beside the product each of them reads and writes all of y. What is asked of them, the gradient of every
example's own copy of a factor, needs no product of the map's size:

    u_i = x A_i^T      du_i = s_i dy B_i      dA_i = du_i^T x      dB_i = s_i dy^T u_i

In bfloat16 W' is rounded as W was, an error of the size of the one that y has by being bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.layers.frozen_maps import FrozenMap, affine

Place = tuple[float, int, int]
"""Scale of a change, and the outputs at which it begins and ends."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The map with its changes, for one call forward and one back.

    Args:
        map: The merged map.
        places: Of the changes.
        a: (R, d). All A_i, one below the other.
        bs: The s_i B_i, each (k_i, r_i).
        dtypes: Of the factors A_1, B_1, A_2 ..., and of their gradients.
    """

    map: FrozenMap
    places: Sequence[Place]
    a: Tensor
    bs: Sequence[Tensor]
    dtypes: Sequence[torch.dtype]

    @classmethod
    def of(cls, frozen: FrozenMap, places: Sequence[Place], factors: Sequence[Tensor], dtype: torch.dtype) -> Merged:
        """The map with changes by factors A_1, B_1, A_2 ..., each (r, d) or (k, r), or copies (n, ...) that are one in memory.

        Args:
            dtype: Of the products.
        """
        # All copies are one.
        once = [factor if factor.dim() == 2 else factor[0] for factor in factors]
        bs = [(b * scale).to(dtype) for b, (scale, *_) in zip(once[1::2], places, strict=True)]
        dtypes = [factor.dtype for factor in factors]
        if not once:
            return cls(map=frozen, places=places, a=frozen.weight[:0], bs=bs, dtypes=dtypes)
        a = torch.cat(once[::2]).to(dtype)
        k = len(frozen.weight)
        wide = torch.cat([F.pad(b, (0, 0, start, k - stop)) for b, (_, start, stop) in zip(bs, places, strict=True)], 1)
        return cls(map=replace(frozen, weight=torch.addmm(frozen.weight, wide, a)), places=places, a=a, bs=bs, dtypes=dtypes)

    def __call__(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """x (m, d) to (m, k), and `plus`."""
        return affine(x, self.map, plus=plus)

    def back(self, dy: Tensor, *, into: Tensor | None = None) -> Tensor:
        """dx (m, d) from dy (m, k), added to `into` in place if given."""
        return dy @ self.map.weight if into is None else into.addmm_(dy, self.map.weight)

    def touched(self) -> tuple[bool, bool, bool]:
        """Which of three stacked parts the changes lie in."""
        return touched(self.map, self.places)

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
        outs = [dy[:, start:stop] for _, start, stop in self.places]
        sizes = [b.shape[1] for b in self.bs]
        if any(needs[::2]):
            du = torch.cat([out @ b for out, b in zip(outs, self.bs, strict=True)], 1)
            for at, d_a in enumerate(torch.split(torch.bmm(_by_example(du, n).transpose(1, 2), _by_example(x, n)), sizes, 1)):
                found[2 * at] = d_a.to(self.dtypes[2 * at]) if needs[2 * at] else None
        if any(needs[1::2]):
            us = torch.split(x @ self.a.T, sizes, 1)
            for at, (out, u, (scale, *_)) in enumerate(zip(outs, us, self.places, strict=True)):
                if needs[2 * at + 1]:
                    # As (u^T dy)^T: the other order makes the kernel transpose the wide operand.
                    turned, wide = _by_example(u, n).transpose(1, 2), _by_example(out, n)
                    # Zeros: not every device's kernel leaves unread what it multiplies by zero.
                    d_b = torch.baddbmm(dy.new_zeros(()), turned, wide, beta=0, alpha=scale).transpose(1, 2)
                    # Turned and cast in one: what sums it over users reads it as one row each.
                    found[2 * at + 1] = d_b.to(self.dtypes[2 * at + 1], memory_format=torch.contiguous_format)
        return found


def touched(stacked: FrozenMap, places: Sequence[Place]) -> tuple[bool, bool, bool]:
    """Which of three stacked parts changes at these places lie in."""
    spans = map(stacked.place, range(3))
    first, second, third = (any(start < end and begin < stop for _, start, stop in places) for begin, end in spans)
    return first, second, third


def _by_example(rows: Tensor, n: int) -> Tensor:
    """(n t, k), whose rows may lie apart, as (n, t, k) without a copy."""
    return rows.view(n, -1, rows.shape[1])
