"""What a platform can do by itself: exact, from its own rows; nothing of it ever leaves, so it needs no noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Split
from client.recommender.evidence import (
    ELSEWHERE,
    TEXT,
    VECTORS,
    WORDS,
    Alike,
    Evidence,
    FriendsLike,
    Popular,
    centred,
    elsewhere_vectors,
    source_vectors,
    word_vectors,
)
from client.recommender.histories import Histories, liked_histories
from client.recommender.item_preferences import emphasised, own_preferences
from client.recommender.left_out import Validation, surely_more
from client.recommender.platform_model import PlatformModel, weigh_evidence
from client.recommender.taste import own_taste
from client.sources.tables import Tables

Floats = NDArray[np.float32]


class UserScores(Protocol):
    """What ranks items for a platform's users."""

    def scores(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of all items, float32 (n, items)."""


@dataclass(frozen=True, kw_only=True)
class OwnFit:
    """A platform's own model, and what fitting the fused one goes on with."""

    validation: Validation = field(repr=False)
    evidence: Sequence[Evidence] = field(repr=False)
    model: PlatformModel


def fit_own(tables: Tables, split: Split, *, text: Floats | None = None, seed: int) -> OwnFit:
    """The own model of a platform, fitted on what trains; held-out items are not looked at.

    Args:
        text: Vectors of the items' texts by an untrained encoder, float32 (items, width), where one is at hand.

    Returns:
        `model`, whose `scores(users)` is float32 (users, items), higher is better and without a unit; `validation` and
        `evidence`, with which `fused_with` goes on.

    | given | result |
    |---|---|
    | nobody | a model of nobody: scores of shape (0, items) |
    | nobody with two liked items | nothing is held out to choose by; every score is finite |
    """
    validation = Validation(training_histories(tables, split), split.known, seed=seed)
    evidence = own_evidence(tables, validation.histories, text)
    preferences = own_preferences(validation)
    model = weigh_evidence(validation, preferences, evidence)
    tried = [weigh_evidence(validation, some, evidence) for some in emphasised(validation, preferences)]
    best = max(tried, key=lambda one: one.gain, default=model)
    # On films, music and a generated shop weights of ratings, plays and events changed nothing beyond chance, so
    # that they have to be better beyond it.
    if surely_more(best.gains, model.gains, validation.points.user):
        model = best
    return OwnFit(validation=validation, evidence=evidence, model=model)


def training_histories(tables: Tables, split: Split) -> Histories:
    """What trains, as histories."""
    return liked_histories(tables, split.train)


def own_evidence(tables: Tables, histories: Histories, text: Floats | None = None) -> list[Evidence]:
    """What a platform knows by itself beside which items its users like together."""
    evidence: list[Evidence] = [Popular(histories), Alike(word_vectors(tables), name=WORDS)]
    elsewhere = elsewhere_vectors(tables)
    evidence += [] if elsewhere is None else [Alike(elsewhere, name=ELSEWHERE)]
    evidence += [Alike(vectors, name=VECTORS.format(name)) for name, vectors in source_vectors(tables).items()]
    evidence += [] if text is None else [Alike(centred(text), name=TEXT), own_taste(histories, text)]
    return [*evidence, FriendsLike(histories, tables.ties)] if tables.ties else evidence


def exact_ranks(model: UserScores, split: Split) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rank of every held-out item in the order of their users, float64 (n,), and the number of candidates, int64 (n,)."""
    users = np.flatnonzero(split.held >= 0)
    if not len(users):
        return np.zeros(0), np.zeros(0, np.int64)
    # Recommending needs no torch, which takes seconds to load.
    import torch

    from client.evaluation.ranking_metrics import ranks_by_parts

    items = model.scores(users[:1]).shape[1]
    return ranks_by_parts(lambda part: torch.from_numpy(model.scores(users[part])), split.held[users], split.known, users, items)
