"""Weights of a platform's evidence, against a search that computes every sum anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from client.recommender.evidence import POPULARITY, WORDS, Alike, Evidence, Popular, ScoredFor
from client.recommender.histories import Histories
from client.recommender.item_preferences import ItemPreferences, fit_preferences
from client.recommender.left_out import Validation, mean_gain
from client.recommender.platform_model import WEIGHTS, weigh_evidence
from tests.client.recommender.test_item_preferences import GROUPS, histories_of

ITEMS = 40


def of_groups(noise: float, seed: int) -> np.ndarray:
    """Vectors that tell which group an item is of, the better the less noise."""
    vectors = np.eye(GROUPS)[np.arange(ITEMS) % GROUPS] + noise * np.random.default_rng(seed).normal(size=(ITEMS, GROUPS))
    unit: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def by_hand(validation: Validation, preferences: ItemPreferences, evidence: Sequence[Evidence]) -> tuple[list[float], float]:
    """One weight at a time, twice, and of every choice the sum from nothing; no part begins with a weight but popularity."""
    alone = validation.scores(preferences.model, preferences.half_life)
    asked = ScoredFor(history=validation.before(preferences.half_life), users=validation.points.user, without=True)
    candidates = alone.copy()
    validation.only_candidates(candidates)
    unit = np.mean([max(0.0, row.max()) for row in candidates])
    least = [1e-4 if part.name == POPULARITY else 0.0 for part in evidence]

    def gain(weights: list[float]) -> float:
        parts = [np.float32(weight) * part.scores(asked) for weight, part in zip(weights, evidence, strict=True)]
        return mean_gain(validation.gains(alone + np.sum(parts, axis=0)))

    best = list(least)
    for _ in range(2):
        for at in range(len(evidence)):
            for weight in (least[at], *(unit * share for share in WEIGHTS)):
                other = [*best[:at], weight, *best[at + 1 :]]
                if gain(other) > gain(best):
                    best = other
    return best, gain(best)


@pytest.fixture(scope="module", params=[(20, 3), (5, 0), (5, 2), (8, 0)], ids=lambda given: f"{given[0]} users")
def histories(request: pytest.FixtureRequest) -> Histories:
    """Of many, and of so few that popularity orders most items."""
    users, seed = request.param
    return histories_of(users, seed=seed)


def test_each_weight_is_the_one_that_predicts_best_beside_the_others(histories: Histories) -> None:
    validation = Validation(histories, histories.liked, seed=0)
    preferences = fit_preferences(validation)
    evidence = [Popular(histories), Alike(of_groups(0.1, 0), name=WORDS), Alike(of_groups(50.0, 1), name="nonsense")]
    weights, gain = by_hand(validation, preferences, evidence)
    model = weigh_evidence(validation, preferences, evidence)
    expected = {part.name: weight for weight, part in zip(weights, evidence, strict=True) if weight}
    assert model.weights == pytest.approx(expected) and model.weights[WORDS] > 0
    assert model.gain == pytest.approx(gain) and model.gain > preferences.gain
    # What people are served is the sum with these weights.
    users = np.arange(histories.users)
    asked = ScoredFor(history=histories.recent(users, half_life=preferences.half_life), users=users)
    total = preferences.model.scores(asked.history) + sum(weight * part.scores(asked) for weight, part in model.evidence)
    np.testing.assert_allclose(model.scores(users), total, atol=1e-6)


def test_of_nobody_popularity_alone_keeps_its_least_weight() -> None:
    nobody = histories_of(0)
    validation = Validation(nobody, nobody.liked, seed=0)
    evidence = [Popular(nobody), Alike(of_groups(0.1, 0), name=WORDS)]
    assert weigh_evidence(validation, fit_preferences(validation), evidence).weights == {POPULARITY: 1e-4}
