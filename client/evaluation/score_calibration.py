"""From scores to calibrated probabilities: that an item is the next one that the person likes, among all that they have not met.

Two maps are fitted, and the one with the smaller log loss on users that it was not fitted on is taken: Platt's logistic curve
(Platt 1999, "Probabilistic outputs for support vector machines") and isotonic regression (Zadrozny & Elkan 2002, "Transforming
classifier scores into accurate multiclass probability estimates"). Both are monotone, so that the order of items stays as it is.

Fitted on a platform's own validation points, exact and therefore private: nothing of it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

PLATT, ISOTONIC = "platt", "isotonic"
MOST_POINTS = 1000
"""Points whose candidates are looked at."""
_TOP, _OTHERS = 64, 128
"""Of a point's candidates: this many of the best ones, and as many drawn from the others, each weighted to represent them all."""
_FOLDS = 5
_STEPS, _ENOUGH, _RIDGE = 100, 1e-10, 1e-9


@dataclass(frozen=True, kw_only=True)
class ScoredPairs:
    """Pairs of a person and an item.

    Args:
        score: float64 (pairs,), finite.
        liked: bool (pairs,). Whether the item is the next that the person liked.
        weight: float64 (pairs,). How many pairs each represents.
        user: int64 (pairs,).
    """

    score: Floats = field(repr=False)
    liked: NDArray[np.bool_] = field(repr=False)
    weight: Floats = field(repr=False)
    user: Numbers = field(repr=False)

    def __len__(self) -> int:
        return len(self.score)

    def some(self, which: NDArray[np.bool_]) -> ScoredPairs:
        """Some of the pairs."""
        return ScoredPairs(score=self.score[which], liked=self.liked[which], weight=self.weight[which], user=self.user[which])


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A monotone map from scores to probabilities.

    Args:
        method: "platt" or "isotonic".
        slope, intercept: Of Platt's curve, 1 / (1 + exp(-(slope x score + intercept))).
        knots: float64 (2, knots). Scores in ascending order and probabilities at them, between which an isotonic map is straight.
        threshold: Probability from which on an item counts as predicted: where F1 is best on what it was fitted on.
    """

    method: str
    slope: float = 0.0
    intercept: float = 0.0
    knots: Floats = field(default_factory=lambda: np.zeros((2, 0)), repr=False)
    threshold: float = 0.5

    def probabilities(self, scores: NDArray[np.floating]) -> Floats:
        """Of any shape; a score of -inf has the least probability that there is.

        Args:
            scores: Not NaN.
        """
        if self.method == ISOTONIC:
            found: Floats = np.interp(scores, self.knots[0], self.knots[1])
            return found
        return _logistic(self.slope * np.asarray(scores, np.float64) + self.intercept)


def fit_calibration(scores: NDArray[np.float32], targets: Numbers, users: Numbers, *, seed: int) -> Calibration | None:
    """The calibration of some points' scores; None where there are no points with two candidates.

    Every user counts alike, however many points are theirs.

    Args:
        scores: float32 (points, items), -inf for what is no candidate.
        targets: int64 (points,). The item that was liked next; a candidate.
        users: int64 (points,). Whose points they are.
        seed: Of the choice of points and candidates.
    """
    pairs = candidate_pairs(scores, targets, users, seed=seed)
    if not pairs.liked.any() or pairs.liked.all():
        return None
    folds = np.random.default_rng([seed, 1]).permutation(int(pairs.user.max()) + 1)[pairs.user] % _FOLDS
    losses = {PLATT: 0.0, ISOTONIC: 0.0}
    for fold in np.unique(folds):
        train, test = pairs.some(folds != fold), pairs.some(folds == fold)
        if not train.liked.any():
            continue
        for method, fit in ((PLATT, platt), (ISOTONIC, isotonic)):
            losses[method] += weighted_log_loss(fit(train).probabilities(test.score), test)
    chosen = platt(pairs) if losses[PLATT] <= losses[ISOTONIC] else isotonic(pairs)
    return Calibration(
        method=chosen.method,
        slope=chosen.slope,
        intercept=chosen.intercept,
        knots=chosen.knots,
        threshold=_best_threshold(chosen.probabilities(pairs.score), pairs),
    )


def candidate_pairs(scores: NDArray[np.float32], targets: Numbers, users: Numbers, *, seed: int) -> ScoredPairs:
    """Each point's target, its best candidates, and a weighted sample of the others, so that sums are those of all candidates.

    Args:
        scores, targets, users: As `fit_calibration`.
    """
    random = np.random.default_rng([seed, 0])
    points = np.arange(len(targets))
    if len(points) > MOST_POINTS:
        points = np.sort(random.choice(points, MOST_POINTS, replace=False))
    share = 1.0 / np.bincount(users[points], minlength=1)[users[points]] if len(points) else np.zeros(0)
    score, liked, weight, user = [np.zeros(0)], [np.zeros(0, np.bool_)], [np.zeros(0)], [np.zeros(0, np.int64)]
    for point, part in zip(points.tolist(), share.tolist(), strict=True):
        row, target = scores[point], int(targets[point])
        others = np.flatnonzero(row > -np.inf)
        others = others[others != target]
        counts = np.ones(len(others))
        if len(others) > _TOP + _OTHERS:
            order = np.argpartition(-row[others], _TOP - 1)
            rest = random.choice(order[_TOP:], _OTHERS, replace=False)
            counts = np.concatenate([np.ones(_TOP), np.full(_OTHERS, (len(others) - _TOP) / _OTHERS)])
            others = others[np.concatenate([order[:_TOP], rest])]
        score.append(np.concatenate([row[[target]], row[others]]).astype(np.float64))
        liked.append(np.arange(len(others) + 1) == 0)
        weight.append(part * np.concatenate([[1.0], counts]))
        user.append(np.full(len(others) + 1, users[point]))
    return ScoredPairs(
        score=np.concatenate(score), liked=np.concatenate(liked), weight=np.concatenate(weight), user=np.concatenate(user)
    )


def platt(pairs: ScoredPairs) -> Calibration:
    """Logistic regression of what was liked on the score, by Newton's method; the slope is not below 0."""
    middle, spread = float(np.average(pairs.score, weights=pairs.weight)), float(pairs.score.std()) or 1.0
    scaled = (pairs.score - middle) / spread
    rate = float(np.average(pairs.liked, weights=pairs.weight))
    found = np.array([0.0, np.log(rate / (1.0 - rate))])
    loss = _logistic_loss(found, scaled, pairs)
    for _ in range(_STEPS):
        probability = _logistic(found[0] * scaled + found[1])
        error = pairs.weight * (probability - pairs.liked)
        curve = pairs.weight * probability * (1.0 - probability)
        slope = np.array([error @ scaled, error.sum()])
        cross = curve @ scaled
        bend = np.array([[curve @ scaled**2, cross], [cross, curve.sum()]]) + _RIDGE * np.eye(2)
        step = np.linalg.solve(bend, slope)
        # Halved until the loss falls: far from the minimum a whole step may overshoot.
        while (tried := _logistic_loss(found - step, scaled, pairs)) > loss and np.abs(step).max() > _ENOUGH:
            step = step / 2
        found, gained, loss = found - step, loss - tried, tried
        if gained <= _ENOUGH * max(1.0, abs(loss)):
            break
    if found[0] < 0:  # a score that speaks against what is liked says nothing that may turn the order
        found = np.array([0.0, np.log(rate / (1.0 - rate))])
    return Calibration(method=PLATT, slope=float(found[0] / spread), intercept=float(found[1] - found[0] * middle / spread))


def isotonic(pairs: ScoredPairs) -> Calibration:
    """The non-decreasing step map of least squared error, straight between its steps, and never 0 or 1.

    No probability is below half a pair in all of them: what has not been seen is not impossible.
    """
    from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

    values, where = np.unique(pairs.score, return_inverse=True)
    weight = np.bincount(where, weights=pairs.weight)
    share = np.bincount(where, weights=pairs.weight * pairs.liked) / weight
    fitted = np.asarray(isotonic_regression(share, weights=weight).x)
    least = 0.5 / float(pairs.weight.sum())
    # A step is its first and its last score.
    edge = np.flatnonzero(np.diff(fitted, prepend=np.nan, append=np.nan))
    ends = np.unique(np.concatenate([edge[:-1], edge[1:] - 1]))
    return Calibration(method=ISOTONIC, knots=np.stack([values[ends], np.clip(fitted[ends], least, 1.0 - least)]))


def weighted_log_loss(probability: Floats, pairs: ScoredPairs) -> float:
    """Sum over pairs of -log of the probability of what was the case, in nats."""
    certain = np.where(pairs.liked, probability, 1.0 - probability)
    return float(-(pairs.weight * np.log(np.maximum(certain, np.finfo(np.float64).tiny))).sum())


def _best_threshold(probability: Floats, pairs: ScoredPairs) -> float:
    """The least probability of those predicted where F1 = 2 TP / (predicted + liked) is greatest."""
    order = np.argsort(-probability, kind="stable")
    right = np.cumsum((pairs.weight * pairs.liked)[order])
    predicted = np.cumsum(pairs.weight[order])
    last = np.append(np.diff(probability[order]) != 0, True)  # equal probabilities are predicted together
    f1 = np.where(last, 2.0 * right / (predicted + right[-1]), -1.0)
    return float(probability[order][int(np.argmax(f1))])


def _logistic(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -values))


def _logistic_loss(found: Floats, scaled: Floats, pairs: ScoredPairs) -> float:
    values = found[0] * scaled + found[1]
    return float(pairs.weight @ (np.logaddexp(0.0, values) - pairs.liked * values))
