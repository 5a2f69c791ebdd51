"""Vectors of the items' texts by a frozen backbone: public, as the catalogue is, and the same on every platform.

Nothing but text is read: what projects a platform's images and sounds stays on that platform, and would make them its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.compute.backend import ready_encoder
from client.compute.feature_cache import TrunkCache
from client.config.platform_file import PlatformFile
from client.examples.item_texts import build_catalogue
from client.examples.texts import Texts
from client.examples.vectors import VectorRows
from client.fusion.operators import fusion_named
from client.model.towers import Rows, Towers, cached_rows
from client.sources.tables import Tables
from shared.base.settings import ModelSettings
from shared.model.adapter import layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import default_device

Advance = Callable[[int], None]


def frozen_item_vectors(
    file: PlatformFile, tables: Tables, model: ModelSettings, *, cache: Path, advance: Advance | None = None
) -> NDArray[np.float32]:
    """Unit vectors of a catalogue, float32 (items, width).

    Args:
        model: Its backbone, and the tokens of an item's text.
        cache: Folder of the trunk cache.
        advance: Called with the number of texts that were read.

    Raises:
        InputError: the backbone cannot be loaded.
        StorageError: the cache cannot be written.
    """
    backbone = load_backbone(model.backbone)
    texts = Texts(backbone.tokenizer, longest=backbone.shape.positions)
    declared = {name: source.tokens for name, source in file.sources.items() if source.tokens is not None}
    sequences = build_catalogue(tables, texts, model, declared).sequences
    encoder = ready_encoder(backbone, model, default_device())
    rows = cached_rows(TrunkCache(cache, encoder), sequences, VectorRows(values={}, present={}), advance)
    return frozen_vectors(Towers(encoder, fusion_named(model.fusion)), rows)


def frozen_vectors(towers: Towers, rows: Rows) -> NDArray[np.float32]:
    """Unit vectors of some texts by the backbone that an encoder has, whatever adapter is being trained on it.

    Args:
        rows: Texts alone.
    """
    encoder = towers.encoder
    shapes = layout_of(encoder.backbone.shape, encoder.model)
    nothing = {name: torch.zeros(shape, device=encoder.device) for name, shape in shapes.items()}
    vectors: NDArray[np.float32] = towers.encode(rows, nothing).cpu().numpy()
    return vectors
