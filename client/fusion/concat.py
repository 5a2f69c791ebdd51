"""Middle fusion: text and sources side by side, then one linear map back to the hidden size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from client.examples.vectors import SourceVectors
from client.fusion.projector import orthonormal, projected
from shared.layers.lora import Parameters


class Concat:
    """[I W1 W2 ...] [text; source 1; source 2; ...]: the text's block stays the identity."""

    OPERATOR = "concat"

    def initial(self, widths: Mapping[str, int], hidden: int, random: np.random.Generator) -> dict[str, Tensor]:
        """The blocks of the map, one per source."""
        return orthonormal(widths, hidden, random, scale=0.3)

    def tokens(self, local: Parameters, vectors: SourceVectors) -> tuple[Tensor, Tensor] | None:
        """No token: the sources meet the text after the encoder."""
        return None

    def combine(self, local: Parameters, pooled: Tensor, vectors: SourceVectors) -> Tensor:
        """Unit vector of the text's unit vector plus every present source's block."""
        fused = F.normalize(pooled, dim=-1)
        for _, part, _ in projected(local, vectors):
            fused = fused + part
        return F.normalize(fused, dim=-1)
