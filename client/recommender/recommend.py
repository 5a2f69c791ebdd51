"""Recommendations on the platform, from a pulled global model and the platform's own rows.

Nothing here leaves the platform, so the popularity prior is the exact one and friends speak without bound. If the model
was trained in a run on this machine, the platform's own projectors and prior of that run are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.compute.backend import ready_encoder
from client.compute.feature_cache import TrunkCache
from client.config.platform_file import PlatformFile
from client.examples.split import ragged
from client.examples.user_examples import Examples
from client.examples.vectors import item_vectors, user_vectors, widths_of
from client.fusion.operators import fusion_named
from client.model.prepared_platform import read_platform
from client.model.towers import Towers, cached_rows
from client.privacy.popularity_release import bounded_counts, log_popularity
from client.run.run_state import load_run_state
from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.model.backbone import load_backbone
from shared.model.encoder import default_device
from shared.model.peft_export import load_published


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item.

    Args:
        score: cosine / temperature + log popularity share; only its order within one user means something.
    """

    rank: int
    item: str
    title: str
    score: float


def recommend_items(
    file: PlatformFile, *, model: Path, user: str, top: int, cache: Path, state: Path | None = None
) -> list[Recommendation]:
    """The best items that the user has not had, best first.

    Args:
        model: A published model's folder.
        cache: Folder of the trunk cache; a second call is quick.
        state: The platform's file of the run that made the model, if it is here.

    Raises:
        InputError: the user is unknown, or the model or the sources cannot be used.
    """
    if top < 1:
        raise InputError(f"--top is {top}", do="ask for at least one item")
    published = load_published(model)
    settings = Settings(model=published.model, simulation=True)
    backbone = load_backbone(published.model.backbone)
    if published.backbone_sha256 and published.backbone_sha256 != backbone.sha256:
        raise InputError(
            "the model was trained on another backbone",
            where=str(model),
            do=f"use the one with SHA-256 {published.backbone_sha256}",
        )
    tables, split, catalogue, _, reader, _ = read_platform(file, settings)
    if user not in tables.user_ids:
        raise InputError(
            f"user {user!r} has no interaction on this platform",
            where=str(file.path),
            do=f"name a user id such as {tables.user_ids[0]!r}",
        )
    number = list(tables.user_ids).index(user)
    rows = slice(tables.interactions.offsets[number], tables.interactions.offsets[number + 1])
    met, positive = tables.interactions.item[rows], tables.interactions.positive[rows]
    context = met[positive][::-1].astype(np.int32)
    example = Examples(
        user=np.asarray([number], np.int64),
        sequences=[reader.sequence(number, context, serving=True)],
        targets=ragged([np.zeros(0, np.int32)]),
        context=ragged([context]),
        excluded=ragged([np.unique(met)]),
    )
    device = default_device()
    encoder = ready_encoder(backbone, published.model, device)
    towers = Towers(encoder, fusion_named(published.model.fusion))
    known = load_run_state(state) if state else None
    random = np.random.default_rng([settings.seed, *file.name.encode()])
    local: Mapping[str, Tensor] = towers.fusion.initial(widths_of(tables), encoder.hidden, random)
    if known is not None:
        local = {**local, **known.local}
    counts = bounded_counts(split, tables, seed=settings.seed).vector()
    prior = torch.from_numpy(log_popularity(counts, 0.0)).to(device)
    parameters = {name: torch.tensor(value, device=device) for name, value in published.adapter.items()}
    parameters |= {name: value.to(device) for name, value in local.items()}
    if known is not None and known.choice is not None and known.choice.own:
        # The platform's own model won: it stands for the whole adapter, what was published in it included.
        parameters |= {name: value.to(device) for name, value in known.personal.items()}
    trunk = TrunkCache(cache, encoder)
    bank = towers.encode(cached_rows(trunk, catalogue.sequences, item_vectors(tables)), parameters)
    vector = towers.encode(cached_rows(trunk, example.sequences, user_vectors(tables, example)), parameters)
    scores = (vector @ bank.T)[0] / published.model.temperature + prior
    scores[torch.from_numpy(np.unique(met).astype(np.int64))] = -torch.inf
    best = torch.topk(scores, min(top, tables.items - len(np.unique(met))))
    return [
        Recommendation(rank=rank, item=tables.item_ids[item], title=tables.item_titles[item], score=round(score, 4))
        for rank, (item, score) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True), start=1)
    ]
