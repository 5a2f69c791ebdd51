"""The projectors that every operator starts from: one map per source, from its width to the hidden size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from client.examples.vectors import SourceVectors
from shared.layers import lora
from shared.layers.lora import Parameters

LOCAL = "source."
"""Prefix of every platform-local parameter's name; what has it is never sent."""


def weight_of(source: str) -> str:
    """Name of a source's projector."""
    return f"{LOCAL}{source}.weight"


def orthonormal(widths: Mapping[str, int], hidden: int, random: np.random.Generator, *, scale: float) -> dict[str, Tensor]:
    """Per source a (hidden, width) map with orthonormal columns (rows if width > hidden), times `scale`.

    Such a map keeps cosines, so that before any training two vectors are as near as their source says.
    """
    local = {}
    for source in sorted(widths):
        tall = max(hidden, widths[source]), min(hidden, widths[source])
        q, _ = np.linalg.qr(random.standard_normal(tall))
        q = q if hidden >= widths[source] else q.T
        local[weight_of(source)] = torch.from_numpy((q * scale).astype(np.float32))
    return local


def projected(local: Parameters, vectors: SourceVectors) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Source, its projected vectors (n, hidden) that are zero where absent, and presence (n,)."""
    for source in sorted(vectors):
        values, present = vectors[source]
        yield source, lora.apply(local[weight_of(source)], values) * present.unsqueeze(-1), present
