"""Fusion operators: how sources that are not text join the text, and how a run finds them by name.

A module of this folder that defines one class with an `OPERATOR` name is an operator: add one by adding a file. An operator owns
a platform-local projector per source. Projectors are trained with the adapter, under the same joint clip and noise, and never
leave the platform.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

import client.fusion
from client.examples.vectors import SourceVectors
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


def _discovered() -> dict[str, Fusion]:
    found: dict[str, Fusion] = {}
    for module in pkgutil.iter_modules(client.fusion.__path__):
        for thing in vars(importlib.import_module(f"{client.fusion.__name__}.{module.name}")).values():
            name = vars(thing).get("OPERATOR") if isinstance(thing, type) else None
            if name is not None:
                found[name] = thing()
    return dict(sorted(found.items()))


FUSIONS: Mapping[str, Fusion] = _discovered()


def fusion_named(name: str) -> Fusion:
    """The operator of that name.

    Raises:
        InputError: there is none.
    """
    if name not in FUSIONS:
        raise InputError(f"unknown fusion operator {name!r}", where="model.fusion", do=f"choose from {', '.join(FUSIONS)}")
    return FUSIONS[name]
