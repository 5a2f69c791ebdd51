"""Calibration against scikit-learn, and of probabilities that are known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from client.evaluation.score_calibration import (
    MOST_POINTS,
    ScoredPairs,
    candidate_pairs,
    fit_calibration,
    isotonic,
    platt,
    weighted_log_loss,
)


def some_pairs(seed: int, count: int = 400) -> ScoredPairs:
    random = np.random.default_rng(seed)
    score = random.normal(5.0, 3.0, count).round(1)
    liked = random.random(count) < 1 / (1 + np.exp(-(0.8 * score - 6.0)))
    return ScoredPairs(score=score, liked=liked, weight=random.uniform(0.2, 3.0, count), user=np.arange(count))


@pytest.mark.parametrize("seed", range(4))
def test_scikit_learn_fits_the_same(seed: int) -> None:
    pairs = some_pairs(seed)
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(pairs.score[:, None], pairs.liked, pairs.weight)
    found = platt(pairs)
    assert (found.slope, found.intercept) == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), rel=1e-4)
    steps = IsotonicRegression(y_min=0.0, y_max=1.0).fit(pairs.score, pairs.liked.astype(float), pairs.weight)
    least = 0.5 / pairs.weight.sum()
    at = np.sort(pairs.score)
    np.testing.assert_allclose(isotonic(pairs).probabilities(at), np.clip(steps.predict(at), least, 1 - least), atol=1e-9)


def test_newtons_method_ends_once_it_has_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is the same after a hundred steps, and takes ten times as long."""
    steps: list[np.ndarray] = []
    solve = np.linalg.solve

    def counted(bend: np.ndarray, slope: np.ndarray) -> np.ndarray:
        steps.append(solve(bend, slope))
        return steps[-1]

    monkeypatch.setattr(np.linalg, "solve", counted)
    for seed in range(4):
        steps.clear()
        platt(some_pairs(seed))
        assert 3 < len(steps) < 20 and np.abs(steps[-1]).max() < 1e-4 < np.abs(steps[0]).max()


def test_a_score_that_speaks_against_what_is_liked_says_nothing() -> None:
    pairs = some_pairs(0)
    turned = ScoredPairs(score=-pairs.score, liked=pairs.liked, weight=pairs.weight, user=pairs.user)
    found = platt(turned)
    assert found.slope == 0.0
    rate = np.average(pairs.liked, weights=pairs.weight)
    assert found.probabilities(np.array([0.0]))[0] == pytest.approx(rate)


def drawn(points: int, items: int, *, seed: int, power: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, and an item drawn from their softmax, so that probabilities are known: softmax(power x scores)."""
    random = np.random.default_rng(seed)
    scores = random.normal(0.0, 1.5, (points, items)).astype(np.float32)
    share = np.exp(power * scores.astype(np.float64))
    share /= share.sum(1, keepdims=True)
    targets = np.array([random.choice(items, p=row) for row in share])
    return scores, targets, share


@pytest.mark.parametrize("items", [50, 1500])
def test_known_probabilities_are_found(items: int) -> None:
    scores, targets, _ = drawn(900, items, seed=3)
    calibration = fit_calibration(scores, targets, np.arange(900), seed=0)
    assert calibration is not None
    fresh, _, truth = drawn(300, items, seed=4)
    found = calibration.probabilities(fresh)
    # In sum: one item a person, however the candidates were sampled.
    assert found.sum(1).mean() == pytest.approx(1.0, abs=0.12)
    # And for those that are likely, which are few.
    likely = truth >= np.quantile(truth, 0.99)
    assert found[likely].mean() == pytest.approx(truth[likely].mean(), rel=0.2)
    assert 0.0 < calibration.threshold < 1.0


def test_every_user_counts_alike_and_samples_stand_for_all() -> None:
    scores, targets, _ = drawn(40, 900, seed=5)
    scores[:, :100] = -np.inf
    targets = np.maximum(targets, 100)
    users = np.minimum(np.arange(40), 20)  # the last one has 20 points
    pairs = candidate_pairs(scores, targets, users, seed=0)
    total = np.bincount(pairs.user, weights=pairs.weight)
    np.testing.assert_allclose(total, 800.0)
    np.testing.assert_allclose(np.bincount(pairs.user, weights=pairs.weight * pairs.liked), 1.0)
    # The best candidates are each for themselves.
    first = pairs.some(pairs.user == 0)
    best = np.sort(np.delete(scores[0], targets[0]))[-64:]
    assert set(best.tolist()) <= set(first.score[first.weight == 1.0].astype(np.float32).tolist())


def test_nothing_to_learn_from() -> None:
    assert fit_calibration(np.zeros((0, 5), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), seed=0) is None
    alone = np.full((2, 5), -np.inf, np.float32)
    alone[:, 1] = 1.0
    assert fit_calibration(alone, np.ones(2, np.int64), np.arange(2), seed=0) is None


def test_many_points_are_sampled() -> None:
    scores, targets, _ = drawn(MOST_POINTS + 50, 5, seed=1)
    pairs = candidate_pairs(scores, targets, np.arange(len(scores)), seed=0)
    assert pairs.liked.sum() == MOST_POINTS


def test_order_stays_and_what_is_no_candidate_is_least_probable() -> None:
    scores, targets, _ = drawn(300, 30, seed=2)
    calibration = fit_calibration(scores, targets, np.arange(300), seed=0)
    assert calibration is not None
    at = np.sort(scores[0])
    found = calibration.probabilities(at)
    assert (np.diff(found) >= 0).all()
    assert calibration.probabilities(np.array([-np.inf], np.float32))[0] <= found[0]
    pairs = candidate_pairs(scores, targets, np.arange(300), seed=0)
    rate = np.full(len(pairs), pairs.liked.mean())
    assert weighted_log_loss(calibration.probabilities(pairs.score), pairs) < weighted_log_loss(rate, pairs)
