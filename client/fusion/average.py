"""Middle fusion without weights: the mean of the text's unit vector and each present source's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from client.examples.vectors import SourceVectors
from client.fusion.projector import orthonormal, projected
from shared.layers.lora import Parameters


class Average:
    """Every present modality counts the same."""

    OPERATOR = "average"

    def initial(self, widths: Mapping[str, int], hidden: int, random: np.random.Generator) -> dict[str, Tensor]:
        """Projectors that keep the source's cosines."""
        return orthonormal(widths, hidden, random, scale=1.0)

    def tokens(self, local: Parameters, vectors: SourceVectors) -> tuple[Tensor, Tensor] | None:
        """No token: the sources meet the text after the encoder."""
        return None

    def combine(self, local: Parameters, pooled: Tensor, vectors: SourceVectors) -> Tensor:
        """Unit vector of the sum (the mean's direction)."""
        fused = F.normalize(pooled, dim=-1)
        for _, part, _ in projected(local, vectors):
            fused = fused + F.normalize(part, dim=-1)
        return F.normalize(fused, dim=-1)
