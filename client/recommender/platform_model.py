"""A platform's recommender: preferences and further evidence, each weighted by what it adds to predicting its own users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from client.evaluation.score_calibration import Calibration, fit_calibration
from client.recommender.evidence import NOBODY, POPULARITY, ByItem, Evidence, ScoredFor
from client.recommender.histories import Histories, Sparse
from client.recommender.item_preferences import ItemPreferences
from client.recommender.left_out import Validation, mean_gain

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

PREFERENCES = "liked together"
WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Of a part, against the highest score that preferences give a user's candidates, in the mean."""
_LEAST = {POPULARITY: 1e-4}
"""Popularity orders the items of which a history says nothing, whatever it adds beyond that."""
_PASSES = 2


@dataclass(frozen=True, kw_only=True)
class ScorePart:
    """One part of the scores for one history.

    Args:
        name: What people read.
        scores: float32 (items,).
        by_item: What the items of the history add; None where the part is no sum over them.
    """

    name: str
    scores: Floats = field(repr=False)
    by_item: ByItem | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class PlatformModel:
    """The score of an item is the sum of its parts.

    Args:
        histories: Of the platform's users.
        evidence: Weight, above 0, and what it weighs.
        gains: float64 (points,). Gain at each left-out point (`client/recommender/left_out.py`).
        calibration: From scores to probabilities (`calibrated`); None where none is asked for or possible.
    """

    histories: Histories = field(repr=False)
    preferences: ItemPreferences
    evidence: Sequence[tuple[float, Evidence]] = field(repr=False)
    gains: NDArray[np.float64] = field(repr=False)
    calibration: Calibration | None = None

    @property
    def gain(self) -> float:
        """Mean over the left-out points."""
        return mean_gain(self.gains)

    @property
    def weights(self) -> dict[str, float]:
        """Part -> its weight."""
        return {part.name: weight for weight, part in self.evidence}

    def scores(self, users: Numbers) -> Floats:
        """Scores of all items for some of the platform's users, float32 (n, items)."""
        return self._sum(self.preferences.history(self.histories, users), users)

    def scores_of(self, histories: Histories) -> Floats:
        """Scores of all items for histories of people who are in no table, float32 (n, items)."""
        users = np.arange(histories.users)
        return self._sum(self.preferences.history(histories, users), np.full(len(users), NOBODY))

    def parts(self, liked: Histories, *, user: int = NOBODY) -> list[ScorePart]:
        """The parts of the scores for one history.

        Args:
            liked: Of one person.
            user: Their number, if they are in the tables.
        """
        history = self.preferences.history(liked, np.zeros(1, np.int64))
        asked = ScoredFor(history=history, users=np.full(1, user))
        scores, by_item = self.preferences.model.for_one(history)
        found = [ScorePart(name=PREFERENCES, scores=scores, by_item=by_item)]
        for weight, part in self.evidence:
            share = np.float32(weight)
            scores, adds = part.for_one(asked)
            found.append(
                ScorePart(name=part.name, scores=share * scores, by_item=None if adds is None else _weighted(adds, share))
            )
        return found

    def _sum(self, history: Sparse, users: Numbers) -> Floats:
        scores = self.preferences.model.scores(history)
        asked = ScoredFor(history=history, users=users)
        for weight, part in self.evidence:
            scores += np.float32(weight) * part.scores(asked)
        return scores


def _weighted(adds: ByItem, share: np.float32) -> ByItem:
    return lambda items: share * adds(items)


def weigh_evidence(validation: Validation, preferences: ItemPreferences, evidence: Sequence[Evidence]) -> PlatformModel:
    """The model in which each part has the weight at which the left-out points are predicted best.

    One weight at a time, the others as they are, each part twice: the scores of preferences stay what they are.
    """
    scores, asked = _left_out_scores(validation, preferences)
    parts = [part.scores(asked) for part in evidence]
    unit = float(np.maximum(scores.max(1), 0.0).mean()) if len(scores) else 0.0
    weights = [_LEAST.get(part.name, 0.0) for part in evidence]
    total = scores
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            total += np.float32(weight) * part
    gains = validation.gains(total)
    for _ in range(_PASSES):
        for place, part in enumerate(parts):
            total -= np.float32(weights[place]) * part
            for weight in (_LEAST.get(evidence[place].name, 0.0), *(unit * share for share in WEIGHTS)):
                found = validation.gains_with(total, part, np.float32(weight))
                if mean_gain(found) > mean_gain(gains):
                    gains, weights[place] = found, weight
            total += np.float32(weights[place]) * part
    return PlatformModel(
        histories=validation.histories,
        preferences=preferences,
        evidence=[(weight, part) for weight, part in zip(weights, evidence, strict=True) if weight > 0],
        gains=gains,
    )


def calibrated(model: PlatformModel, validation: Validation) -> PlatformModel:
    """The model with probabilities, fitted on the left-out points that it was weighed on."""
    points = validation.points
    total, asked = _left_out_scores(validation, model.preferences)
    for weight, part in model.evidence:
        total += np.float32(weight) * part.scores(asked)
    return replace(model, calibration=fit_calibration(total, points.target, points.user, seed=validation.seed))


def _left_out_scores(validation: Validation, preferences: ItemPreferences) -> tuple[Floats, ScoredFor]:
    """What preferences make of the left-out points, -inf for what is no candidate; and what is asked of further evidence."""
    scores = validation.scores(preferences.model, preferences.half_life, preferences.emphasis)
    validation.only_candidates(scores)
    before = validation.before(preferences.half_life, preferences.emphasis)
    return scores, ScoredFor(history=before, users=validation.points.user, without=True)
