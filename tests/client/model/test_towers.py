"""The two towers: a bank is what its rows are one by one, however they are batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.compute.feature_cache import TrunkCache
from client.examples.vectors import VectorRows
from client.fusion.operators import FUSIONS, fusion_named
from client.model.towers import Rows, Towers, cached_rows
from shared.base.settings import ModelSettings
from shared.model.adapter import layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder

CPU = torch.device("cpu")


def parts(backbone: str, folder: Path, *, rows: int, fusion: str = "attention") -> tuple[Towers, Rows, dict[str, torch.Tensor]]:
    random = np.random.default_rng(0)
    encoder = Encoder(load_backbone(backbone), ModelSettings(backbone=backbone, layers=2), device=CPU, dtype=torch.float32)
    towers = Towers(encoder, fusion_named(fusion))
    sequences = [random.integers(5, 80, random.integers(1, 40)).astype(np.int32) for _ in range(rows)]
    vectors = VectorRows(
        values={"image": random.normal(0, 1, (rows, 4)).astype(np.float32)}, present={"image": random.random(rows) < 0.7}
    )
    local = towers.fusion.initial({"image": 4}, 32, random)
    return towers, cached_rows(TrunkCache(folder, encoder), sequences, vectors), local


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
@pytest.mark.parametrize("budget", [64, 8192])
def test_a_bank_is_its_rows_one_by_one(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fusion: str, budget: int
) -> None:
    monkeypatch.setattr("client.compute.batching.TOKENS", {"cpu": budget})
    towers, rows, local = parts(tiny_bert, tmp_path, rows=70, fusion=fusion)
    seen: list[int] = []
    bank = towers.encode(rows, local, seen.append)
    assert sum(seen) == len(rows) == 70
    assert bank.dtype == torch.float32
    for row in range(0, 70, 9):
        alone = towers.vectors(*rows.take(np.asarray([row]), CPU), local)
        torch.testing.assert_close(bank[row], alone[0], atol=1e-5, rtol=1e-4)


def test_padding_of_a_batch_does_not_matter(tiny_bert: str, tmp_path: Path) -> None:
    towers, rows, local = parts(tiny_bert, tmp_path, rows=6)
    chosen = np.asarray([4, 0, 2])
    short, long = (towers.vectors(*rows.take(chosen, CPU, multiple=multiple), local) for multiple in (1, 64))
    torch.testing.assert_close(long, short, atol=1e-5, rtol=1e-4)
    for multiple in (1, 8, 16):
        hidden, mask, _ = rows.take(chosen, CPU, multiple=multiple)
        assert hidden.shape[1] == mask.shape[1] == -(-int(rows.lengths[chosen].max()) // multiple) * multiple


def test_no_rows(tiny_bert: str, tmp_path: Path) -> None:
    towers, rows, local = parts(tiny_bert, tmp_path, rows=0)
    assert towers.encode(rows, local).shape == (0, 32)


def test_a_bank_needs_no_gradient(tiny_bert: str, tmp_path: Path) -> None:
    towers, rows, local = parts(tiny_bert, tmp_path, rows=3)
    leaves = {name: value.clone().requires_grad_() for name, value in local.items()}
    assert not towers.encode(rows, leaves).requires_grad


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_others_do_not_move_a_rows_last_bits(tiny_bert: str, tmp_path: Path, fusion: str) -> None:
    """A product of fewer than four rows rounds otherwise, and an adapter can be chosen that makes much of it."""
    towers, rows, local = parts(tiny_bert, tmp_path, rows=20, fusion=fusion)
    random = np.random.default_rng(1)
    layout = layout_of(towers.encoder.backbone.shape, ModelSettings(backbone=tiny_bert, layers=2))
    local |= {name: torch.from_numpy(random.normal(0, 1, shape).astype(np.float32)) for name, shape in layout.items()}
    everybody = towers.encode(rows, local, apart=True)
    for count in range(1, 20):
        assert torch.equal(towers.encode(rows.some(np.arange(count)), local, apart=True), everybody[:count]), count
