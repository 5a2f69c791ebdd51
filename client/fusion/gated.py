"""Middle fusion with a gate: how much of a source enters depends on what the text says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from client.examples.vectors import SourceVectors
from client.fusion.projector import LOCAL, orthonormal, projected
from shared.layers import lora
from shared.layers.lora import Parameters


def _gate(source: str) -> str:
    return f"{LOCAL}{source}.gate"


class Gated:
    """text + sigmoid(g . text) * source, one gate g (1, hidden) per source (Arevalo et al. 2017)."""

    OPERATOR = "gated"

    def initial(self, widths: Mapping[str, int], hidden: int, random: np.random.Generator) -> dict[str, Tensor]:
        """Projectors, and gates that begin half open."""
        return orthonormal(widths, hidden, random, scale=0.6) | {
            _gate(source): torch.zeros(1, hidden) for source in sorted(widths)
        }

    def tokens(self, local: Parameters, vectors: SourceVectors) -> tuple[Tensor, Tensor] | None:
        """No token: the sources meet the text after the encoder."""
        return None

    def combine(self, local: Parameters, pooled: Tensor, vectors: SourceVectors) -> Tensor:
        """Unit vector of the text's unit vector plus every source through its gate."""
        text = F.normalize(pooled, dim=-1)
        fused = text
        for source, part, _ in projected(local, vectors):
            fused = fused + torch.sigmoid(lora.apply(local[_gate(source)], text)) * part
        return F.normalize(fused, dim=-1)
