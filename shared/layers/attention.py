"""Softmax attention over stacked queries, keys and values (Vaswani et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.layers import reference_path as plain

ALL = (True, True, True)
"""Query, key and value: all of them."""


def attend(stacked: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Mixed values of every token.

    Args:
        stacked: (n, t, 3 h): query, key and value side by side, each of `heads` equal parts.
        mask: bool (n, t), True where a token may be attended to. Each row needs one at least.

    Returns:
        (n, t, h).
    """
    if stacked.device.type == "cpu" and not plain.asked():
        return _Written.apply(stacked, mask, heads)  # type: ignore[no-any-return, no-untyped-call]
    n, t, width = stacked.shape
    q, k, v = stacked.view(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2).reshape(n, t, width // 3)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """Attention in the plain form, with what its derivative needs.

    On a processor torch's fused kernel took 2 times this one's time forward and 5 times backward (bf16, 64 tokens, heads
    of 32). With P = softmax(s q k^T + mask): dv = P^T do, dS = P * (do v^T - rowsum(P * do v^T)), dq = s dS k, dk = s dS^T q.

    Args:
        values: (n, t, h). What attention gives.
        parts: (3, n * heads, t, d). Queries, keys and values by head.
        shares: (n * heads, t, t). P.
    """

    values: Tensor
    parts: Tensor
    shares: Tensor


def mix(stacked: Tensor, mask: Tensor, heads: int) -> Mixed:
    """`attend` with what `derivative` needs; no gradient is recorded."""
    n, t, width = stacked.shape
    d = width // (3 * heads)
    parts = stacked.view(n, t, 3, heads, d).permute(2, 0, 3, 1, 4).contiguous().view(3, n * heads, t, d)
    q, k, v = parts
    # The scale goes into the product: scaling queries or keys would be a pass over memory of its own.
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=d**-0.5)
    if torch.compiler.is_compiling() or not bool(mask.all()):
        # Added, not filled in: a sum over the small mask is a third of the time.
        bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        scores.view(n, heads, t, t).add_(bias[:, None, None, :])
    shares = _softmax(scores)
    values = torch.bmm(shares, v).view(n, heads, t, d).transpose(1, 2).reshape(n, t, heads * d)
    return Mixed(values=values, parts=parts, shares=shares)


def derivative(do: Tensor, parts: Tensor, shares: Tensor, wanted: tuple[bool, bool, bool] = ALL) -> Tensor:
    """Gradient of the stack from that of the mixed values.

    Args:
        do: (n, t, h).
        parts, shares: Of `Mixed`.
        wanted: Which of query, key and value are asked for; what is not holds nothing that may be read.

    Returns:
        (n, t, 3 h).
    """
    q, k, v = parts
    n, t, h = do.shape
    d = q.shape[-1]
    heads, scale = h // d, d**-0.5
    do = do.view(n, t, heads, d).transpose(1, 2).reshape(n * heads, t, d)
    gradient = torch.empty_like(parts)
    if wanted[2]:
        torch.bmm(shares.transpose(1, 2), do, out=gradient[2])
    if wanted[0] or wanted[1]:
        inner = _softmax_back(torch.bmm(do, v.transpose(1, 2)), shares)
    if wanted[0]:
        torch.baddbmm(gradient[0], inner, k, beta=0, alpha=scale, out=gradient[0])
    if wanted[1]:
        torch.baddbmm(gradient[1], inner.transpose(1, 2), q, beta=0, alpha=scale, out=gradient[1])
    return gradient.view(3, n, heads, t, d).permute(1, 3, 0, 2, 4).reshape(n, t, 3 * h)


def _softmax(scores: Tensor) -> Tensor:
    """In place: memory that a step writes for the first time costs more than what is computed into it.

    The compiler plans memory by itself, and does not understand an output that is its own input.
    """
    if torch.compiler.is_compiling():
        return scores.softmax(-1)
    return cast(Tensor, torch.ops.aten._softmax.out(scores, -1, False, out=scores))


def _softmax_back(gradient: Tensor, shares: Tensor) -> Tensor:
    """In place, as `_softmax`."""
    if torch.compiler.is_compiling():
        return torch._softmax_backward_data(gradient, shares, -1, shares.dtype)
    back = torch.ops.aten._softmax_backward_data.out
    return cast(Tensor, back(gradient, shares, -1, shares.dtype, grad_input=gradient))


class _Written(torch.autograd.Function):
    """`mix` and `derivative` as one function to autograd."""

    @staticmethod
    def forward(ctx: Any, stacked: Tensor, mask: Tensor, heads: int) -> Tensor:
        mixed = mix(stacked, mask, heads)
        ctx.save_for_backward(mixed.parts, mixed.shares)
        return mixed.values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, None, None]:
        return derivative(do, *ctx.saved_tensors), None, None
