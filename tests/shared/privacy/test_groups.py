"""Groups: the triangle, the coarse pair, and the mixture that bounds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from shared.privacy import pld
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS
from shared.privacy.groups import Removal, additions, removals, triangle
from shared.privacy.releases import Release, ReleaseKind, merge_releases


def train(group: int, noise: float = 6.0) -> Release:
    return Release(kind=ReleaseKind.TRAIN, noise_multiplier=noise, sample_rate=0.1, steps=50, group_size=group)


PRIOR = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=4.0)


def test_a_group_of_one_is_the_plain_epsilon_with_the_whole_delta() -> None:
    merged = merge_releases([PRIOR, train(1)])
    assert additions(merged) == ()
    assert DP_ACCOUNTING.epsilon([PRIOR, train(1)], 1e-5).epsilon == pld.pld_epsilon(removals(merged), 1e-5)


def test_releases_of_different_groups_share_the_two_steps() -> None:
    merged = merge_releases([PRIOR, train(3)])
    assert sorted((r.examples, r.steps) for r in removals(merged)) == [(1, 1), (3, 50)]
    assert [(r.examples, r.steps) for r in additions(merged)] == [(2, 50)]


@given(st.floats(0.1, 6), st.floats(0.1, 6), st.floats(0.3, 2.5), st.floats(1e-8, 1e-3))
def test_the_triangle_spends_exactly_delta_in_both_orders(a: float, b: float, slope: float, delta: float) -> None:
    first = lambda d: a + slope * math.log(1e-2 / d)  # noqa: E731
    second = lambda d: b + slope * math.log(1e-2 / d)  # noqa: E731
    total = triangle(first, second, delta)
    sums = []
    for one, two in ((first, second), (second, first)):
        e1 = one(delta / 2)
        d2 = delta / 2 * math.exp(-e1)
        assert delta / 2 + math.exp(e1) * d2 == pytest.approx(delta)
        sums.append(e1 + two(d2))
    assert total == max(sums)
    # Splitting delta evenly without the e^e1 would be wrong, and cheaper.
    assert total > first(delta / 2) + second(delta / 2)


def test_the_triangle_gives_up_where_delta_underflows() -> None:
    assert triangle(lambda _: 800.0, lambda _: 1.0, 1e-5) == math.inf


@given(st.integers(1, 40), st.floats(1e-6, 1.0), st.floats(0.3, 30.0))
def test_the_coarse_pair_has_the_right_rate_and_the_largest_shift(examples: int, rate: float, noise: float) -> None:
    z, q = Removal(noise_multiplier=noise, sample_rate=rate, examples=examples, steps=1).coarse
    assert z == noise / examples
    assert q == pytest.approx(1 - (1 - rate) ** examples, rel=1e-9)
    assert 0 < q <= 1


@given(st.integers(2, 60), st.floats(1e-5, 0.999))
def test_the_mixture_is_a_distribution_with_at_least_the_binomial_tail(examples: int, rate: float) -> None:
    sensitivities, weights = pld.mixture(Removal(noise_multiplier=1.0, sample_rate=rate, examples=examples, steps=1))
    assert sensitivities == sorted(set(sensitivities)) and sensitivities[-1] == examples
    assert sum(weights) == pytest.approx(1, rel=1e-9)
    assert np.dot(sensitivities, weights) >= examples * rate * (1 - 1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize(("noise", "rate", "examples"), [(2.0, 0.2, 3), (1.0, 0.6, 2)])
def test_the_coarse_pair_dominates_the_exact_one(epsilon: float, noise: float, rate: float, examples: int) -> None:
    x = np.linspace(-40, 40, 80_001)
    sensitivities, weights = pld.mixture(Removal(noise_multiplier=noise, sample_rate=rate, examples=examples, steps=1))
    plain = norm.pdf(x, 0, noise)
    exact = sum(w * norm.pdf(x, k, noise) for k, w in zip(sensitivities, weights, strict=True))
    z, q = Removal(noise_multiplier=noise, sample_rate=rate, examples=examples, steps=1).coarse
    coarse_plain = norm.pdf(x, 0, z)
    coarse = (1 - q) * coarse_plain + q * norm.pdf(x, 1, z)

    def loss(p: np.ndarray, r: np.ndarray) -> float:
        return float(np.trapezoid(np.maximum(p - math.exp(epsilon) * r, 0), x))

    assert loss(coarse, coarse_plain) >= loss(exact, plain) - 1e-9
    assert loss(coarse_plain, coarse) >= loss(plain, exact) - 1e-9


def test_opacus_pays_more_for_a_group_than_the_exact_mixture() -> None:
    assert OPACUS.epsilon([train(2, 12.0)], 1e-5).epsilon > DP_ACCOUNTING.epsilon([train(2, 12.0)], 1e-5).epsilon
