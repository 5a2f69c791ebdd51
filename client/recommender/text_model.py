"""The text model of a published adapter: how alike a user's text and an item's are.

What it reads of a user are their own rows: profile, history, notes. Friends are not read, since their rows are others'. Of
somebody who is in no table it reads the titles of their history.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.backend import ready_encoder
from client.compute.feature_cache import TrunkCache
from client.config.platform_file import PlatformFile
from client.examples.split import ragged
from client.examples.user_examples import Examples
from client.examples.vectors import item_vectors, user_vectors
from client.fusion.operators import fusion_named
from client.model.prepared_platform import read_platform
from client.model.towers import Towers, cached_rows
from client.recommender.evidence import NOBODY
from client.run.run_state import RunState
from client.sources.tables import Tables
from shared.base.errors import InputError
from shared.base.progress import Progress, counted
from shared.base.settings import ModelSettings, Settings
from shared.model.adapter import layout_of
from shared.model.backbone import load_backbone, shape_of
from shared.model.encoder import default_device
from shared.model.peft_export import PublishedModel

Floats = NDArray[np.float32]


class TextModel:
    """Likeness by a published adapter.

    Args:
        published: The adapter and the settings of its model.
        cache: Folder of the trunk cache.

    Raises:
        InputError: the backbone is not the one that the adapter was trained on, or cannot be loaded.
        StorageError: the cache cannot be written.
    """

    def __init__(
        self,
        file: PlatformFile,
        published: PublishedModel,
        *,
        tables: Tables,
        cache: Path,
        where: str,
        progress: Progress | None = None,
    ) -> None:
        backbone = load_backbone(published.model.backbone)
        if published.backbone_sha256 and published.backbone_sha256 != backbone.sha256:
            raise InputError(
                "the model was trained on another backbone",
                where=where,
                do=f"use the one with SHA-256 {published.backbone_sha256}",
            )
        self.temperature, self._progress = published.model.temperature, progress
        settings = Settings(model=published.model, simulation=True)
        self._tables = with_nobody(tables)
        _, _, self._catalogue, _, self._reader, _ = read_platform(file, settings, tables=self._tables)
        device = default_device()
        encoder = ready_encoder(backbone, published.model, device)
        self._towers = Towers(encoder, fusion_named(published.model.fusion))
        self._trunk = TrunkCache(cache, encoder)
        random = np.random.default_rng([settings.seed, *file.name.encode()])
        local: Mapping[str, Tensor] = self._towers.fusion.initial(tables.vector_widths, encoder.hidden, random)
        self._parameters = {name: torch.tensor(value, device=device) for name, value in published.adapter.items()}
        self._parameters |= {name: value.to(device) for name, value in local.items()}

    def with_state(self, state: RunState) -> TextModel:
        """The same with what the platform keeps of its own run: its projectors, and its own adapter where that won."""
        made = copy(self)
        made.__dict__.pop("items", None)
        kept = {**state.local}
        if state.choice is not None and state.choice.own:
            # It replaces the whole adapter, the published parts included.
            kept |= state.personal
        device = self._towers.encoder.device
        made._parameters = {**self._parameters, **{name: value.to(device) for name, value in kept.items()}}
        return made

    def untrained(self) -> TextModel:
        """The frozen encoder alone: what the platform has without anybody's adapter."""
        made = copy(self)
        made.__dict__.pop("items", None)
        made._parameters = {
            name: torch.zeros_like(value) if name.endswith("lora_B") else value for name, value in self._parameters.items()
        }
        return made

    @cached_property
    def items(self) -> Floats:
        """Unit vectors of the items, float32 (items, width)."""
        advance = counted(self._progress, "reading the items' texts", self._tables.items)
        rows = cached_rows(self._trunk, self._catalogue.sequences, item_vectors(self._tables), advance)
        vectors: Floats = self._towers.encode(rows, self._parameters).cpu().numpy()
        return vectors

    def users(self, users: NDArray[np.int64], contexts: list[NDArray[np.int32]]) -> Floats:
        """Unit vectors of people's texts, float32 (n, width).

        Args:
            users: int64 (n,), `NOBODY` for somebody who is in no table.
            contexts: Per user, the items of their history, newest first.
        """
        numbers = np.where(users == NOBODY, self._tables.users - 1, users)
        none = ragged([np.zeros(0, np.int32)] * len(users))
        sequences = self._reader.sequences(numbers, contexts, serving=True)
        examples = Examples(user=numbers, sequences=sequences, targets=none, context=ragged(contexts), excluded=none)
        advance = counted(self._progress, "reading users' texts", len(users))
        rows = cached_rows(self._trunk, sequences, user_vectors(self._tables, examples), advance)
        vectors: Floats = self._towers.encode(rows, self._parameters).cpu().numpy()
        return vectors


def no_adapter(model: ModelSettings) -> PublishedModel:
    """The adapter that changes nothing."""
    shapes = layout_of(shape_of(model.backbone), model)
    return PublishedModel(
        model=model, adapter={name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, backbone_sha256=""
    )


def with_nobody(tables: Tables) -> Tables:
    """The tables without ties, and with one user more of whom nothing is known."""
    interactions = tables.interactions
    longer = {
        name: replace(
            own,
            values=np.concatenate([own.values, np.zeros((1, own.values.shape[1]), np.float32)]),
            present=np.append(own.present, False),
        )
        for name, own in tables.user_vectors.items()
    }
    return replace(
        tables,
        ties={},
        user_ids=[*tables.user_ids, ""],
        user_text={name: [*texts, ""] for name, texts in tables.user_text.items()},
        notes={name: replace(notes, offsets=np.append(notes.offsets, notes.offsets[-1])) for name, notes in tables.notes.items()},
        user_vectors=longer,
        interactions=replace(interactions, offsets=np.append(interactions.offsets, interactions.offsets[-1])),
    )
