"""A small two-tower with every kind of trainable tensor, for the tests of gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from client.fusion.operators import fusion_named
from client.model.towers import Towers
from shared.base.settings import ModelSettings
from shared.model.adapter import layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder

CPU = torch.device("cpu")


class Toy:
    """A two-tower of tiny parts with every kind of trainable tensor."""

    def __init__(
        self,
        backbone: str,
        *,
        rows: int,
        length: int,
        fusion: str = "attention",
        targets: str = "query,value",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        kernels: bool = False,
    ) -> None:
        random = np.random.default_rng(seed)
        model = ModelSettings(backbone=backbone, rank=2, layers=2, targets=targets, fusion=fusion)  # type: ignore[arg-type]
        self.encoder = Encoder(load_backbone(backbone), model, device=CPU, dtype=dtype, kernels=kernels)
        self.towers = Towers(self.encoder, fusion_named(fusion))
        layout = layout_of(self.encoder.backbone.shape, model)
        self.parameters: dict[str, Tensor] = {
            name: torch.from_numpy(random.normal(0, 0.2, shape).astype(np.float32)) for name, shape in layout.items()
        } | self.towers.fusion.initial({"image": 5, "sound": 3}, 32, random)
        self.mask = torch.arange(length) < torch.from_numpy(random.integers(1, length + 1, (rows, 1)))
        self.hidden = torch.from_numpy(random.normal(0, 1, (rows, length, 32)).astype(np.float32)) * self.mask.unsqueeze(-1)
        self.sources = {
            name: (
                torch.from_numpy(random.normal(0, 1, (rows, width)).astype(np.float32)),
                torch.from_numpy(random.random(rows) < 0.7),
            )
            for name, width in (("image", 5), ("sound", 3))
        }
        width = self.towers.vectors(*self._rows(slice(None)), self.parameters).shape[1]
        self.bank = torch.nn.functional.normalize(torch.from_numpy(random.normal(0, 1, (9, width)).astype(np.float32)), dim=-1)
        self.target = torch.from_numpy(random.integers(0, 9, rows))

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        return self.hidden[rows], self.mask[rows], {name: (v[rows], p[rows]) for name, (v, p) in self.sources.items()}

    def losses(self, rows: slice = slice(None)):  # type: ignore[no-untyped-def]
        def losses(parameters: Mapping[str, Tensor]) -> Tensor:
            vectors = self.towers.vectors(*self._rows(rows), parameters)
            return torch.nn.functional.cross_entropy(vectors @ self.bank.T / 0.5, self.target[rows], reduction="none")

        return losses

    def one_by_one(self, trained: list[str]) -> list[dict[str, Tensor]]:
        """Plain autograd, one user at a time, with no copies at all."""
        found = []
        for row in range(len(self.hidden)):
            leaves = {name: self.parameters[name].clone().requires_grad_() for name in trained}
            loss = self.losses(slice(row, row + 1))({**self.parameters, **leaves}).sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            found.append(dict(zip(leaves, gradients, strict=True)))
        return found


@pytest.fixture(scope="session")
def make_toy(tiny_bert: str):  # type: ignore[no-untyped-def]
    """Makes a `Toy` of so many rows and tokens."""

    def make(backbone: str = tiny_bert, **over: object) -> Toy:
        return Toy(backbone, **over)  # type: ignore[arg-type]

    return make
