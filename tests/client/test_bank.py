"""A bank is encoded once for all that have the same items and the same model, and for nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.bank import Bank
from client.fusion import fusion_named
from client.towers import Towers, cached_rows
from client.trunk import TrunkCache
from client.vectors import VectorRows
from shared.adapter import initial
from shared.backbone import load_backbone
from shared.encoder import Encoder
from shared.settings import ModelSettings, Settings

CPU = torch.device("cpu")


class Maker:
    """Banks of one process, and how often their towers encoded."""

    def __init__(self, backbone: str, folder: Path) -> None:
        self.backbone, self.folder, self.encoded = backbone, folder, 0
        random = np.random.default_rng(0)
        self.sequences = [random.integers(5, 80, random.integers(1, 20)).astype(np.int32) for _ in range(9)]
        self.values = random.normal(0, 1, (9, 4)).astype(np.float32)

    def bank(self, *, present: bool = True, fusion: str = "attention", folder: str = "a", **changed: Any) -> Bank:
        sequences, values = changed.get("sequences", self.sequences), changed.get("values", self.values)
        model = ModelSettings(backbone=self.backbone, layers=changed.get("layers", 2))
        encoder = Encoder(load_backbone(self.backbone), model, device=CPU, dtype=torch.float32)
        towers = Towers(encoder, fusion_named(fusion))
        vectors = VectorRows(values={"cover": values}, present={"cover": np.full(len(sequences), present)})
        rows = cached_rows(TrunkCache(self.folder / folder / str(encoder.cut), encoder), sequences, vectors)
        made, encode = Bank(towers, rows, sequences, vectors), towers.encode

        def counting(*given: Any) -> torch.Tensor:
            self.encoded += 1
            return encode(*given)

        towers.encode = counting  # type: ignore[method-assign]
        return made

    def parameters(self, fusion: str = "attention") -> dict[str, torch.Tensor]:
        settings = Settings(model=ModelSettings(backbone=self.backbone, layers=2))
        local = fusion_named(fusion).initial({"cover": 4}, 32, np.random.default_rng(1))
        return {name: torch.from_numpy(value) for name, value in initial(settings).items()} | local


@pytest.fixture
def maker(tiny_bert: str, tmp_path: Path) -> Maker:
    return Maker(tiny_bert, tmp_path)


def test_two_platforms_with_the_same_items_share_one(maker: Maker) -> None:
    """Even where one of them keeps its features elsewhere."""
    parameters = maker.parameters()
    first = maker.bank()(parameters)
    assert maker.bank(folder="b")({name: value.clone() for name, value in parameters.items()}) is first
    assert maker.encoded == 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda maker: {"sequences": [*maker.sequences[:-1], maker.sequences[0]]},
        lambda maker: {"values": maker.values + 1},
        lambda maker: {"present": False},
        lambda maker: {"fusion": "average"},
        lambda maker: {"layers": 1},
    ],
    ids=["other texts", "other vectors", "no vectors", "another operator", "other layers"],
)
def test_whoever_differs_has_another(maker: Maker, changed: Any) -> None:
    first = maker.bank()(maker.parameters())
    change = changed(maker)
    second = maker.bank(**change)(maker.parameters(change.get("fusion", "attention")))
    assert maker.encoded == 2
    assert first.shape != second.shape or not torch.equal(first, second)


def test_another_adapter_has_another(maker: Maker) -> None:
    parameters, bank = maker.parameters(), maker.bank()
    first = bank(parameters)
    for name in parameters:
        moved = {**parameters, name: parameters[name] + 0.1}
        assert bank(moved) is not first, name
    assert maker.encoded == 1 + len(parameters)


@pytest.mark.parametrize("fusion", ["attention", "concat", "gated", "average", "vote"])
def test_the_projector_of_a_source_that_no_item_has_makes_no_difference(maker: Maker, fusion: str) -> None:
    """It is trained on each platform by itself; whoever left it out of the comparison must be right in that."""
    parameters, bank = maker.parameters(fusion), maker.bank(present=False, fusion=fusion)
    first = bank(parameters).clone()
    moved = {**parameters, "source.cover.weight": parameters["source.cover.weight"] * 3}
    assert torch.equal(maker.bank(present=False, fusion=fusion)._towers.encode(bank._items, moved), first)
    held = bank(parameters)
    assert bank(moved) is held


def test_a_bank_that_nobody_holds_is_forgotten(maker: Maker) -> None:
    bank, parameters = maker.bank(), maker.parameters()
    kept = bank(parameters)
    del kept
    bank(parameters)
    assert maker.encoded == 2
