"""The frozen maps of a layer: x W^T + b, with what follows it in the same kernel where the processor's library has one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FrozenMap:
    """A linear map whose weights do not change.

    Args:
        weight: (k, d).
        bias: (k,).
        parts: Names of the maps that are stacked in it, each k / len(parts) outputs.
    """

    weight: Tensor
    bias: Tensor
    parts: tuple[str, ...]

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weight as `shared/layers/native/kernels` reads it, on the way ahead and back, and no change of it."""
        return torch.ops.fedfuse.merged(self.weight, [], [], [], [])  # type: ignore[no-any-return]

    def place(self, part: int) -> tuple[int, int]:
        """Where the outputs of a part begin and end."""
        size = len(self.weight) // len(self.parts)
        return part * size, (part + 1) * size


@dataclass(frozen=True, kw_only=True)
class FrozenNorm:
    """A layer normalisation whose weights do not change.

    Args:
        weight, bias: (h,).
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., h), normalised."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True, kw_only=True)
class FrozenLayer:
    """The frozen weights of one transformer layer.

    Args:
        stacked: Queries, keys and values: one product instead of three, since they have the same input.
        mixing: From the mixed values back to the stream (BERT's attention.output).
        up, down: To the wide inner layer, and back.
        attention_norm, output_norm: After attention, and after the inner layer.
        heads: Of attention.
    """

    stacked: FrozenMap
    mixing: FrozenMap
    up: FrozenMap
    down: FrozenMap
    attention_norm: FrozenNorm
    output_norm: FrozenNorm
    heads: int


def affine(x: Tensor, frozen: FrozenMap, *, plus: Tensor | None = None) -> Tensor:
    """x W^T + b, and `plus`; no gradient is recorded.

    Args:
        x: (m, d).
        plus: (m, k), or None.

    Returns:
        (m, k).
    """
    if not _fused(x):
        y = F.linear(x, frozen.weight, frozen.bias)
        return y if plus is None else y.add_(plus)
    # torch's own form copies the bias to every row first, in bfloat16 as costly as a quarter of the product.
    kernel = torch.ops.mkldnn._linear_pointwise
    if plus is None:
        return cast(Tensor, kernel(x, frozen.weight, frozen.bias, "none", [], ""))
    return cast(Tensor, kernel.binary(x, plus, frozen.weight, frozen.bias, "add"))


def affine_gelu(x: Tensor, frozen: FrozenMap) -> Tensor:
    """GELU (exact, Hendrycks & Gimpel 2016) of `affine`, for when no derivative will be asked for."""
    if not _fused(x):
        return F.gelu(F.linear(x, frozen.weight, frozen.bias))
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, frozen.weight, frozen.bias, "gelu", [], "none"))


def _fused(x: Tensor) -> bool:
    """Whether oneDNN's fused products, which the compiler emits by itself, serve for x: there, and faster than the plain ones."""
    half = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.numel() > 0
    return half and _KERNELS and not torch.compiler.is_compiling()


_KERNELS = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
