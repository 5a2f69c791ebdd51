"""A bank is encoded once for all that have the same items and the same model, and for nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.compute.feature_cache import TrunkCache
from client.examples.vectors import VectorRows
from client.fusion.operators import fusion_named
from client.model.item_bank import Bank, BankOfRounds
from client.model.towers import Towers, cached_rows
from shared.base.settings import ModelSettings, Settings
from shared.model.adapter import initial
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder

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


class TestOverRounds:
    def bank(self, maker: Maker, *, rounds: int = 3, remembered: Any = None) -> BankOfRounds:
        return BankOfRounds(maker.bank(), rounds=rounds, device=CPU, remembered=remembered or {})

    def adapters(self, maker: Maker, count: int) -> list[dict[str, torch.Tensor]]:
        return [{name: value + 0.01 * at for name, value in maker.parameters().items()} for at in range(count)]

    def test_one_encoding_serves_so_many_rounds(self, maker: Maker) -> None:
        adapters, bank = self.adapters(maker, 8), self.bank(maker)
        found = [bank.of_round(round_, adapters[round_]) for round_ in (1, 2, 3, 4, 5, 7)]  # round 6 was missed
        firsts = [maker.bank()(adapters[round_]) for round_ in (1, 4, 7)]
        assert [next(at for at, first in enumerate(firsts) if torch.equal(first, one)) for one in found] == [0, 0, 0, 1, 1, 2]

    def test_a_platform_that_was_started_again_goes_on_with_the_same(self, maker: Maker) -> None:
        adapters, bank = self.adapters(maker, 4), self.bank(maker)
        first = bank.of_round(1, adapters[1]).clone()
        again = self.bank(maker, remembered={name: value.clone() for name, value in bank.remembered.items()})
        assert torch.equal(again.of_round(2, adapters[2]), first)
        assert torch.equal(again.now(adapters[2]), maker.bank()(adapters[2]))  # an evaluation in between
        assert torch.equal(again.of_round(3, adapters[3]), first)

    def test_otherwise_each_round_has_its_own(self, maker: Maker) -> None:
        adapters, bank = self.adapters(maker, 3), self.bank(maker, rounds=1)
        for round_ in (1, 2):
            assert torch.equal(bank.of_round(round_, adapters[round_]), maker.bank()(adapters[round_]))
        assert bank.remembered == {}
