"""Two towers with a few random rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from client.compute.feature_cache import TrunkCache
from client.examples.vectors import VectorRows
from client.fusion.operators import fusion_named
from client.model.towers import Rows, Towers, cached_rows
from shared.base.settings import ModelSettings
from shared.model.adapter import layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import Encoder

CPU = torch.device("cpu")


def small_towers(
    backbone: str, folder: Path, *, rows: int, fusion: str = "attention", device: torch.device = CPU
) -> tuple[Towers, Rows, dict[str, torch.Tensor]]:
    """The towers, rows of 1 to 39 tokens of which some have a picture, and the fusion operator's parameters."""
    random = np.random.default_rng(0)
    encoder = Encoder(load_backbone(backbone), ModelSettings(backbone=backbone, layers=2), device=device, dtype=torch.float32)
    towers = Towers(encoder, fusion_named(fusion))
    sequences = [random.integers(5, 80, random.integers(1, 40)).astype(np.int32) for _ in range(rows)]
    vectors = VectorRows(
        values={"image": random.normal(0, 1, (rows, 4)).astype(np.float32)}, present={"image": random.random(rows) < 0.7}
    )
    local = {name: value.to(device) for name, value in towers.fusion.initial({"image": 4}, 32, random).items()}
    return towers, cached_rows(TrunkCache(folder, encoder), sequences, vectors), local


def require_rows_apart(backbone: str, folder: Path, *, fusion: str, device: torch.device = CPU) -> None:
    """Assert that a row's vector is the same to the last bit whichever other rows are there."""
    towers, rows, local = small_towers(backbone, folder, rows=20, fusion=fusion, device=device)
    random = np.random.default_rng(1)
    layout = layout_of(towers.encoder.backbone.shape, ModelSettings(backbone=backbone, layers=2))
    local |= {name: torch.from_numpy(random.normal(0, 1, shape).astype(np.float32)).to(device) for name, shape in layout.items()}
    everybody = towers.encode(rows, local, apart=True)
    for count in range(1, 20):
        assert torch.equal(towers.encode(rows.some(np.arange(count)), local, apart=True), everybody[:count]), count
