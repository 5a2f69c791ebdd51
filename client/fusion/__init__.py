"""Fusion operators: how sources that are not text join the text. One file each; add one by adding a file.

An operator owns a platform-local projector per source. Projectors are trained with the adapter, under the same
joint clip and noise, and never leave the platform.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from client.examples.vectors import SourceVectors
from client.fusion.attention import Attention
from client.fusion.average import Average
from client.fusion.concat import Concat
from client.fusion.gated import Gated
from client.fusion.vote import Vote
from shared.base.errors import InputError
from shared.layers.lora import Parameters


class Fusion(Protocol):
    """What every operator does; `n` rows, each with the same sources, some of them absent."""

    def initial(self, widths: Mapping[str, int], hidden: int, random: np.random.Generator) -> dict[str, Tensor]:
        """The local parameters before training, float32; none where there is no source."""

    def tokens(self, local: Parameters, vectors: SourceVectors) -> tuple[Tensor, Tensor] | None:
        """Source tokens (n, s, hidden) and their mask (n, s), for operators that fuse by attention."""

    def combine(self, local: Parameters, pooled: Tensor, vectors: SourceVectors) -> Tensor:
        """The row's unit vector (n, width) from its text's pooled vector (n, hidden) and its sources."""


FUSIONS: Mapping[str, Fusion] = {
    "attention": Attention(),
    "concat": Concat(),
    "gated": Gated(),
    "average": Average(),
    "vote": Vote(),
}


def fusion_named(name: str) -> Fusion:
    """The operator of that name.

    Raises:
        InputError: there is none.
    """
    if name not in FUSIONS:
        raise InputError(f"unknown fusion operator {name!r}", where="model.fusion", do=f"choose from {', '.join(FUSIONS)}")
    return FUSIONS[name]


__all__ = ["FUSIONS", "Fusion", "fusion_named"]
