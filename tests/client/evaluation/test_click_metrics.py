"""Metrics of a classifier against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from client.evaluation.click_metrics import CLICK_METRICS, click_figures, pair_sums, reliability
from client.evaluation.score_calibration import Calibration
from client.evaluation.user_bootstrap import sum_estimates

USERS, ITEMS = 30, 25


def cases(seed: int) -> tuple[np.ndarray, np.ndarray, Calibration]:
    """Scores with ties, some items met, and a map that is steep enough for some to be predicted."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(USERS, ITEMS)).round(1).astype(np.float32)
    held = random.integers(0, ITEMS, USERS)
    scores[np.arange(USERS), held] += 1.5
    met = random.random((USERS, ITEMS)) < 0.2
    met[np.arange(USERS), held] = False
    scores[met] = -np.inf
    return scores, held, Calibration(method="platt", slope=1.7, intercept=-3.0, threshold=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_scikit_learn_says_the_same(seed: int) -> None:
    scores, held, calibration = cases(seed)
    candidate = scores > -np.inf
    liked = np.arange(ITEMS) == held[:, None]
    probability = 1.0 / (1.0 + np.exp(-(1.7 * scores[candidate].astype(np.float64) - 3.0)))
    truth, predicted = liked[candidate], probability >= 0.3
    own = [metrics.roc_auc_score(liked[user][candidate[user]], scores[user][candidate[user]]) for user in range(USERS)]
    expected = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        "precision": metrics.precision_score(truth, predicted),
        "recall": metrics.recall_score(truth, predicted),
        "f1": metrics.f1_score(truth, predicted),
        "auc": np.mean(own),
        "log_loss": metrics.log_loss(truth, probability),
        "brier": metrics.brier_score_loss(truth, probability),
    }
    found = dict(zip(CLICK_METRICS, click_figures(pair_sums(scores, held, calibration).sum(0, keepdims=True))[0], strict=True))
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("slope", "intercept"), [(1.7, -3.0), (9.0, -8.0)])
def test_the_calibration_error_is_that_of_its_bins(slope: float, intercept: float) -> None:
    """Of probabilities of all sizes, too: some below the first edge, and some that round to 1."""
    scores, held, calibration = cases(1)
    calibration = replace(calibration, slope=slope, intercept=intercept)
    sums = pair_sums(scores, held, calibration).sum(0)
    bins = reliability(sums)
    candidate = scores > -np.inf
    probability = calibration.probabilities(scores[candidate])
    truth = (np.arange(ITEMS) == held[:, None])[candidate]
    edges = np.concatenate([[0.0], np.logspace(-6, 0, 12)[:-1], [np.inf]])
    error = 0.0
    for one, inside in zip(
        bins, [part for part in (np.digitize(probability, edges) == place for place in range(14)) if part.any()], strict=True
    ):
        assert one.pairs == inside.sum()
        assert one.predicted == pytest.approx(probability[inside].mean())
        assert one.observed == pytest.approx(truth[inside].mean())
        wilson = binomtest(int(truth[inside].sum()), one.pairs).proportion_ci(method="wilson")
        assert (one.low, one.high) == pytest.approx((wilson.low, wilson.high), abs=1e-4)
        assert 0.0 <= one.low <= one.observed <= one.high <= 1.0
        error += inside.mean() * abs(probability[inside].mean() - truth[inside].mean())
    found = dict(zip(CLICK_METRICS, click_figures(sums[None])[0], strict=True))
    assert found["ece"] == pytest.approx(error)
    assert found["relative_ece"] == pytest.approx(error / truth.mean())


def test_what_predicts_nothing_has_no_precision() -> None:
    scores, held, _ = cases(2)
    sums = pair_sums(scores, held, Calibration(method="platt", slope=0.0, intercept=-5.0, threshold=0.5))
    found = dict(zip(CLICK_METRICS, sum_estimates(sums, click_figures, seed=0, resamples=20), strict=True))
    assert np.isnan(found["precision"].value) and found["precision"].as_dict()["low"] is None
    assert found["recall"].value == 0.0


def test_the_only_candidate_is_before_all_others() -> None:
    scores = np.full((2, 3), -np.inf, np.float32)
    scores[0, 1], scores[1] = 0.5, [0.5, 0.5, 0.1]
    sums = pair_sums(scores, np.array([1, 0]), Calibration(method="platt", slope=0.0, intercept=0.0, threshold=0.9))
    auc = list(CLICK_METRICS).index("auc")
    assert click_figures(sums)[:, auc].tolist() == [1.0, 0.75]
    assert reliability(np.zeros_like(sums[0])) == []
