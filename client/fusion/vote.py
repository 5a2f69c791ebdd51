"""Late fusion: every modality scores by itself, and the scores are averaged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from client.examples.vectors import SourceVectors
from client.fusion.projector import orthonormal, projected
from shared.layers.lora import Parameters


class Vote:
    """The mean of the cosines of text and sources, written as one inner product of concatenated unit vectors (the default)."""

    OPERATOR = "vote"

    def initial(self, widths: Mapping[str, int], hidden: int, random: np.random.Generator) -> dict[str, Tensor]:
        """Projectors that keep the source's cosines."""
        return orthonormal(widths, hidden, random, scale=1.0)

    def tokens(self, local: Parameters, vectors: SourceVectors) -> tuple[Tensor, Tensor] | None:
        """No token: the sources never meet the text."""
        return None

    def combine(self, local: Parameters, pooled: Tensor, vectors: SourceVectors) -> Tensor:
        """[text; source 1; ...], each of norm 1 (0 where absent), over the root of their number."""
        parts = [F.normalize(pooled, dim=-1)]
        parts += [F.normalize(part, dim=-1) for _, part, _ in projected(local, vectors)]
        return torch.cat(parts, dim=-1).mul(len(parts) ** -0.5)
