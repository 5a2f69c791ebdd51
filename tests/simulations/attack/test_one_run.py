"""Bounds of epsilon from one run: right where they can be known, and never above the truth more often than they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from shared.base.errors import InputError
from simulations.attack.attack_report import view_of
from simulations.attack.cosine import cosine_epsilon, cosines, epsilon_between
from simulations.attack.one_run import (
    SHARES,
    CanaryScores,
    epsilon_of_mu,
    gaussian_epsilon,
    one_run_epsilon,
    one_run_mu,
    steinke_epsilon,
)
from simulations.attack.roc import roc_of


def drawn(canaries: int, mu: float, seed: int) -> CanaryScores:
    """Scores as a mu-Gaussian mechanism gives at best."""
    random = np.random.default_rng(seed)
    inside = random.random(canaries) < 0.5
    return CanaryScores(score=random.normal(size=canaries) + mu * inside, inside=inside)


# Computed with google-deepmind/jax_privacy, jax_privacy/auditing.py at commit 8967688c26d46f3b74bfdfe61ef1f984b887abab:
# `_epsilon_one_run(0, m, r, v, 0.05, delta)` and `_epsilon_one_run_fdp(1e-6, m, r, v, 0.05, delta)`. It is no dependency.
JAX_PRIVACY = [
    # m, guesses, right, delta, one run, f-DP
    (1000, 100, 95, 1e-5, 2.165176, 3.323300),
    (1000, 1000, 700, 1e-5, 0.731741, 1.371980),
    (500, 500, 500, 1e-5, 5.101003, 11.144762),
    (200, 40, 40, 1e-4, 2.495803, 3.944488),
    (2000, 200, 150, 1e-6, 0.821113, 1.339338),
    (300, 60, 30, 1e-5, 0.000000, 0.000001),
]


@pytest.mark.parametrize(("canaries", "guesses", "right", "delta", "any_mechanism", "gaussian"), JAX_PRIVACY)
def test_they_agree_with_jax_privacy(
    canaries: int, guesses: int, right: int, delta: float, any_mechanism: float, gaussian: float
) -> None:
    assert one_run_epsilon(canaries, guesses, right, delta=delta, chance=0.05) == pytest.approx(any_mechanism, abs=1e-4)
    assert epsilon_of_mu(one_run_mu(canaries, guesses, right, chance=0.05), delta) == pytest.approx(gaussian, abs=1e-3)


# The same library's release 2.0.0 (PyPI), on the scores of `drawn`:
# `CanaryScoreAuditor(score[inside], score[~inside])`, `epsilon_one_run(0.05, 1e-4, threshold_strategy=Explicit(t))` and
# `epsilon_one_run_fdp` likewise, t being the lowest score of those that are guessed to be in.
SAME_SCORES = [
    # canaries, mu, seed, guesses, one run, f-DP
    (300, 1.5, 0, 60, 2.887044, 4.585461),
    (300, 3.0, 1, 120, 3.156933, 5.369889),
    (600, 0.5, 2, 60, 0.477709, 0.583522),
    (1000, 4.0, 3, 1000, 0.0, 0.0),
]


@pytest.mark.parametrize(("canaries", "mu", "seed", "guesses", "any_mechanism", "gaussian"), SAME_SCORES)
def test_they_agree_with_jax_privacy_on_the_same_scores(
    canaries: int, mu: float, seed: int, guesses: int, any_mechanism: float, gaussian: float
) -> None:
    scores = drawn(canaries, mu, seed)
    right = scores.guessed(guesses, both=False)
    assert one_run_epsilon(canaries, guesses, right, delta=1e-4, chance=0.05) == pytest.approx(any_mechanism, abs=1e-4)
    assert epsilon_of_mu(one_run_mu(canaries, guesses, right, chance=0.05), 1e-4) == pytest.approx(gaussian, abs=1e-3)


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.5, 3.0])
def test_a_bound_is_seldom_above_the_truth(mu: float) -> None:
    """Of 100 runs 5 may be; the chance that more than 12 are, if so many may, is below a thousandth."""
    truth, wrong = epsilon_of_mu(mu, 1e-4), [0, 0]
    for seed in range(100):
        scores = drawn(300, mu, seed)
        for which, bound in enumerate((steinke_epsilon, gaussian_epsilon)):
            wrong[which] += bound(scores, 1e-4) > truth
    assert max(wrong) <= 12


@pytest.mark.parametrize(("mu", "least"), [(1.6, 2.0), (4.0, 4.5)])
def test_a_bound_is_worth_something(mu: float, least: float) -> None:
    assert np.median([gaussian_epsilon(drawn(600, mu, seed), 1e-4) for seed in range(7)]) >= least


def test_the_epsilon_of_a_gaussian_mechanism() -> None:
    for mu in (0.1, 1.0, 5.0, 30.0):
        for delta in (1e-2, 1e-5):
            epsilon = epsilon_of_mu(mu, delta)
            assert epsilon_between(mu, 1.0, 1.0, delta) == pytest.approx(min(epsilon, 100.0), rel=1e-3)
    assert epsilon_of_mu(0.0, 1e-5) == 0 == epsilon_of_mu(1e-6, 1e-3)
    assert math.isfinite(epsilon_of_mu(100.0, 1e-12))


def test_scores_that_say_nothing_prove_nothing() -> None:
    random = np.random.default_rng(0)
    nothing = CanaryScores(score=np.zeros(200), inside=random.random(200) < 0.5)
    assert roc_of(nothing).area == 0.5 and roc_of(nothing).at(0.01) == 0.0
    assert steinke_epsilon(nothing, 1e-5) <= 0.5
    assert one_run_epsilon(100, 50, 25, delta=0.0, chance=0.05) == 0 == one_run_mu(100, 50, 25, chance=0.05)


def test_more_right_guesses_prove_more() -> None:
    found = [one_run_epsilon(500, 100, right, delta=1e-6, chance=0.05) for right in range(50, 101, 5)]
    assert found == sorted(found) and found[-1] > 3
    found = [one_run_mu(500, 100, right, chance=0.05) for right in range(50, 101, 5)]
    assert found == sorted(found) and found[-1] > 1


def test_the_curve_of_perfect_and_of_opposite_scores() -> None:
    inside = np.array([True, False] * 50)
    assert roc_of(CanaryScores(score=inside * 1.0, inside=inside)).area == 1.0
    assert roc_of(CanaryScores(score=inside * 1.0, inside=inside)).at() == 1.0
    assert roc_of(CanaryScores(score=-1.0 * inside, inside=inside)).area == 0.0


def test_the_cosine_statistic() -> None:
    """A canary's own direction, in a release with noise: epsilon as the Gaussian mechanism has it."""
    random, dimension, noise = np.random.default_rng(0), 4000, 0.5
    vectors = random.normal(size=(200, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    released = vectors[:100].sum(0) + noise * random.normal(size=dimension)
    found = cosines(vectors, released)
    assert found[:100].mean() > 5 * abs(found[100:].mean())
    assert found[100:].std() == pytest.approx(dimension**-0.5, rel=0.2)
    shift = 1 / np.linalg.norm(released)
    expected = epsilon_of_mu(shift * dimension**0.5, 1e-3)
    assert cosine_epsilon(found[:100], dimension=dimension, delta=1e-3) == pytest.approx(expected, rel=0.5)
    assert cosine_epsilon(found[100:], dimension=dimension, delta=1e-3) < 1
    assert not cosines(vectors, np.zeros(dimension)).any()


@pytest.mark.parametrize(
    ("score", "inside"),
    [([1.0, 2.0], [True, True]), ([1.0, 2.0], [False, False]), ([1.0, math.nan], [True, False]), ([1.0], [True, False])],
)
def test_scores_are_checked(score: list[float], inside: list[bool]) -> None:
    with pytest.raises(InputError):
        CanaryScores(score=np.array(score), inside=np.array(inside))


def tied(canaries: int, seed: int) -> CanaryScores:
    random = np.random.default_rng(seed)
    inside = random.permutation(np.arange(canaries) < 2 + seed % (canaries - 3))
    return CanaryScores(score=random.integers(0, 5, canaries) + inside * 0.5, inside=inside)


@pytest.mark.parametrize("seed", range(6))
def test_the_highest_are_guessed_to_be_in_and_the_lowest_to_be_out(seed: int) -> None:
    scores = tied(9, seed)
    order = sorted(range(9), key=lambda canary: (scores.score[canary], canary))
    for guesses in range(10):
        for both, low in ((False, 0), (True, guesses // 2)):
            highest = order[9 - (guesses - low) :]
            right = sum(bool(scores.inside[canary]) for canary in highest)
            right += sum(not scores.inside[canary] for canary in order[:low])
            assert scores.guessed(guesses, both=both) == right


@pytest.mark.parametrize("among", [1, 3])
def test_all_numbers_of_guesses_and_all_views_share_one_error(among: int) -> None:
    """Bonferroni: 5% over the views, of each view over its two bounds, and of each bound over its 14 ways to guess."""
    scores, best = drawn(120, 3.0, 1), [0.0, 0.0]
    chance = 0.05 / among / 2 / (2 * len(SHARES))
    assert len(SHARES) == 7
    for guesses in (max(2, round(share * 120)) for share in SHARES):
        for both in (True, False):
            right = scores.guessed(guesses, both=both)
            best[0] = max(best[0], one_run_epsilon(120, guesses, right, delta=1e-4, chance=chance))
            best[1] = max(best[1], one_run_mu(120, guesses, right, chance=chance))
    view = view_of(scores, 1e-4, among=among)
    assert (view.steinke, view.gaussian) == pytest.approx((best[0], epsilon_of_mu(best[1], 1e-4))) and min(best) > 0
    assert view.canaries == 120 and view.bound == max(view.steinke, view.gaussian)


@pytest.mark.parametrize("seed", range(6))
def test_the_curve_is_the_fields_own(seed: int) -> None:
    scores = tied(40, seed)
    curve = roc_of(scores)
    assert curve.area == pytest.approx(roc_auc_score(scores.inside, scores.score))
    false, true, _ = roc_curve(scores.inside, scores.score, drop_intermediate=False)
    np.testing.assert_allclose([curve.false_positive, curve.true_positive], [false, true])
    for rate in (0.0, *false, 0.01, 1.0):
        assert curve.at(rate) == true[false <= rate].max()
    points = view_of(scores, 1e-4).roc
    assert points[0] == (0.0, 0.0) and points[-1] == (1.0, 1.0) and len(curve.points(5)) == 5
    np.testing.assert_allclose(points, np.stack([false, true], 1))
    assert view_of(scores, 1e-4).low == curve.at(0.01) and view_of(scores, 1e-4).area == curve.area


@pytest.mark.parametrize("mean", [-1.0, 0.3, 2.0])
@pytest.mark.parametrize("deviation", [0.6, 1.0, 1.7])
def test_epsilon_between_two_gaussians_is_of_the_worse_direction(mean: float, deviation: float) -> None:
    """At that epsilon the larger of both profiles is delta: the mass of each where it is over e^epsilon times the other."""
    x = np.linspace(-30, 30, 300_001)
    here, there = norm.pdf(x, mean, deviation), norm.pdf(x, 0.0, 1.0)
    epsilon = epsilon_between(mean, deviation, 1.0, 1e-3)
    profiles = [float(np.maximum(p - np.exp(epsilon) * q, 0.0).sum() * (x[1] - x[0])) for p, q in ((here, there), (there, here))]
    assert epsilon > 0 and max(profiles) == pytest.approx(1e-3, rel=1e-3)
    assert epsilon_between(5 * mean, 5 * deviation, 5.0, 1e-3) == pytest.approx(epsilon, rel=1e-4)  # it has no unit


def test_the_cosine_statistic_fits_mean_and_deviation() -> None:
    inside = np.array([0.1, 0.4, 0.3, 0.2])
    expected = epsilon_between(0.25, float(np.sqrt(0.05 / 3)), 0.1, 1e-3)
    assert cosine_epsilon(inside, dimension=100, delta=1e-3) == pytest.approx(expected)
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(cosines(vectors, np.array([2.0, 0.0])), [0.6, 0.0, -1.0])
