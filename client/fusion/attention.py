"""Early fusion: each source becomes a token that joins the text where the trainable layers begin."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from client.examples.vectors import SourceVectors
from client.fusion.projector import orthonormal, projected
from shared.layers.lora import Parameters

_SCALE = 0.3  # of a hidden state's usual norm at the start: heard by attention, but not louder than a word


class Attention:
    """Attention itself weighs sources against words; an absent source is masked."""

    OPERATOR = "attention"

    def initial(self, widths: Mapping[str, int], hidden: int, random: np.random.Generator) -> dict[str, Tensor]:
        """Projectors whose tokens begin small beside the text's hidden states."""
        return orthonormal(widths, hidden, random, scale=_SCALE * hidden**0.5)

    def tokens(self, local: Parameters, vectors: SourceVectors) -> tuple[Tensor, Tensor] | None:
        """One token per source."""
        if not vectors:
            return None
        parts = list(projected(local, vectors))
        return torch.stack([token for _, token, _ in parts], 1), torch.stack([present for _, _, present in parts], 1)

    def combine(self, local: Parameters, pooled: Tensor, vectors: SourceVectors) -> Tensor:
        """The text's pooled vector, which attention has already fused."""
        return F.normalize(pooled, dim=-1)
