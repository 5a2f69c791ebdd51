"""What a platform can do by itself: exact, from its own rows; nothing of it ever leaves, so it needs no noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from client.evaluation.ranking_metrics import ranks_by_parts
from client.examples.split import Split
from client.recommender.histories import Histories
from client.recommender.item_preferences import ItemPreferences, fit_preferences
from client.sources.tables import Tables
from shared.protocol.quality import Quality, mean_quality

_TIES = 1e-4
"""Weight of popularity, at most 1: it orders items of which a history says nothing."""


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A platform's own recommender.

    Args:
        popularity: float32 (items,). How many users like each item, over the largest.
    """

    histories: Histories
    preferences: ItemPreferences = field(repr=False)
    popularity: NDArray[np.float32] = field(repr=False)

    def scores(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of all items for some users, float32 (n, items)."""
        scores: NDArray[np.float32] = self.preferences.scores(self.histories, users) + np.float32(_TIES) * self.popularity
        return scores


def fit_own_model(tables: Tables, split: Split, *, seed: int) -> OwnModel:
    """The own model of a platform, fitted on what trains; held-out items are not looked at."""
    histories = Histories(liked=split.train, items=tables.items, ordered=tables.interactions.time is not None)
    counts = np.bincount(split.train.values, minlength=tables.items)
    return OwnModel(
        histories=histories,
        preferences=fit_preferences(histories, split.known, seed=seed),
        popularity=(counts / max(counts.max(initial=0), 1)).astype(np.float32),
    )


def held_out_quality(model: OwnModel, split: Split) -> Quality:
    """Exact ranking quality on the held-out items, for the platform's own eyes."""
    users = np.flatnonzero(split.held >= 0)
    found = ranks_by_parts(
        lambda part: torch.from_numpy(model.scores(users[part])), split.held[users], split.known, users, model.histories.items
    )
    return mean_quality(*found)
