"""The integer mechanism's accounting, held against its exact law: computed, convolved, sampled and composed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import fftconvolve

from shared.base.errors import InputError
from shared.privacy import discrete_sum as discrete
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, PREFERRED, Accountant
from shared.privacy.calibration import noise_multiplier
from shared.privacy.groups import Removal
from shared.privacy.integers import LEAST_SHARE, Integers
from shared.privacy.plan import make_plan
from shared.privacy.releases import MAX_INTEGER_GROUP, Release, ReleaseKind, merge_releases
from shared.privacy.spent import Method
from shared.secagg.fixed_point import FixedPoint, planning

Law = NDArray[np.float64]
"""Masses of -K ... K, K the same for all laws of a test."""

PART = Integers(reach=500.0, dimension=20_000, failure=2.0**-64, honest=8)


def release(noise: float, rate: float = 1.0, steps: int = 1, part: Integers | None = PART, group: int = 1) -> Release:
    return Release(kind=ReleaseKind.TRAIN, noise_multiplier=noise, sample_rate=rate, steps=steps, integers=part, group_size=group)


# --- exact laws ------------------------------------------------------------------------------------


def discrete_gaussian(variance: float, reach: int) -> Law:
    k = np.arange(-reach, reach + 1, dtype=np.float64)
    masses = np.exp(-(k**2) / (2 * variance))
    return masses / masses.sum()


def shifted(law: Law, real: float) -> Law:
    """The law moved by a real number and rounded by chance."""
    whole = math.floor(real)
    part = real - whole
    return (1 - part) * np.roll(law, whole) + part * np.roll(law, whole + 1)


def divergence(p: Law, q: Law, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())


def spent(p: Law, q: Law, delta: float) -> float:
    """Least epsilon of two laws at delta, the larger of both directions."""

    def one(a: Law, b: Law) -> float:
        excess = lambda epsilon: divergence(a, b, epsilon) - delta  # noqa: E731
        return float(brentq(excess, 0, 60, xtol=1e-9)) if excess(0) > 0 else 0.0

    return max(one(p, q), one(q, p))


def composed(p: Law, q: Law, steps: int, delta: float, *, grid: float = 1e-3) -> float:
    """A lower bound, by at most steps x grid, of the epsilon of that many independent steps; both directions."""

    def one(a: Law, b: Law) -> float:
        kept = a > 1e-300
        losses = np.floor((np.log(a[kept]) - np.log(np.maximum(b[kept], 1e-320))) / grid).astype(int)  # down: optimistic
        losses = np.clip(losses, int(-20 / grid), int(20 / grid))
        low = losses.min()
        single = np.bincount(losses - low, weights=a[kept])
        total = single
        for _ in range(steps - 1):
            total = np.maximum(fftconvolve(total, single), 0)
        at = (np.arange(len(total)) + steps * low) * grid

        def excess(epsilon: float) -> float:
            return float((total * np.maximum(-np.expm1(epsilon - at), 0)).sum()) - delta

        return float(brentq(excess, 0, 100, xtol=1e-7)) if excess(0) > 0 else 0.0

    return max(one(p, q), one(q, p))


def pair(*, step: float, base: float, variance: float, shares: int, rate: float, reach: int) -> tuple[Law, Law]:
    """What an honest but curious server sees of one coordinate with a user of real value `step`, and without them."""
    noise = discrete_gaussian(variance / shares, reach)
    for _ in range(shares - 1):
        noise = np.convolve(noise, discrete_gaussian(variance / shares, reach))[reach:-reach]
    without = shifted(noise, base)
    return (1 - rate) * without + rate * shifted(noise, base + step), without


# --- the closeness that the proof needs ---------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.15, 0.25, 0.4])
def test_a_discrete_gaussian_is_a_post_processed_gaussian(smoothing: float) -> None:
    """At s^2 far below the accounted 4, where the difference can be seen; it must be within the docstring's eta."""
    variance, k = 6.0, np.arange(-40, 41, dtype=np.float64)
    x = np.linspace(-45, 45, 90_001)
    weights = np.exp(-((k[:, None] - x) ** 2) / (2 * smoothing))
    kernel = weights / weights.sum(0)
    density = np.exp(-(x**2) / (2 * (variance - smoothing))) / math.sqrt(2 * math.pi * (variance - smoothing))
    made = (kernel * density).sum(1) * (x[1] - x[0])
    eta = 2.001 * math.exp(-2 * math.pi**2 * smoothing)
    seen = np.abs(np.log(made / discrete_gaussian(variance, 40)))[10:-10].max()
    assert seen <= 2 * math.log((1 + eta) / (1 - eta))
    if eta > 1e-2:
        assert seen > eta / 100  # otherwise this test would see nothing


@pytest.mark.parametrize("variance", [0.3, 0.5, 0.8])
def test_shares_sum_to_a_discrete_gaussian(variance: float) -> None:
    share = discrete_gaussian(variance, 60)
    total, whole = np.convolve(share, share)[60:-60], discrete_gaussian(2 * variance, 60)
    eta = 2.001 * math.exp(-2 * math.pi**2 * variance / 2)
    seen = np.abs(np.log(total[50:-50] / whole[50:-50])).max()
    assert seen <= 2 * eta + 1e-12
    if eta > 1e-2:
        assert seen > eta / 100


def test_at_the_accounted_smoothing_the_difference_is_below_every_float() -> None:
    eta = 2.001 * math.exp(-2 * math.pi**2 * 4.0)
    assert eta < 2.0**-112
    assert 4 * eta + 2 * 64 * eta < 2.0**-discrete.CLOSENESS_BITS


# --- the accountant against the exact privacy loss ------------------------------------------------------


@pytest.mark.parametrize("accountant", [OPACUS, DP_ACCOUNTING], ids=lambda accountant: accountant.name)
@pytest.mark.parametrize(("step", "base"), [(40.0, 0.0), (39.5, 0.3), (40.0, 0.5), (0.7, 0.9)])
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.2, 1), (0.2, 12)])
def test_one_dimension_exactly(accountant: Accountant, step: float, base: float, rate: float, steps: int) -> None:
    part = Integers(reach=step, dimension=1, failure=0.0, honest=3)
    noise = 0.9
    sigma = noise * part.norm
    law = pair(step=step, base=base, variance=sigma**2, shares=3, rate=rate, reach=int(16 * sigma + 30))
    delta = 1e-4
    exact = spent(*law, delta) if steps == 1 else composed(*law, steps, delta)
    said = accountant.epsilon([release(noise, rate, steps, part)], delta)
    assert said.tight and said.epsilon >= exact
    if step > 10:
        # Not absurdly far: in one dimension rounding may lengthen 40 steps to 41, and that is nearly all.
        assert exact >= 0.93 * said.epsilon
    assert exact > 0.01


def test_less_noise_than_charged_for_is_more_than_the_accountant_says() -> None:
    """The comparison above can fail: shares of half the variance, or of one platform too few."""
    part = Integers(reach=12.0, dimension=1, failure=0.0, honest=3)
    variance = (0.9 * part.norm) ** 2
    said = OPACUS.epsilon([release(0.9, 0.2, 12, part)], 1e-4).epsilon
    for broken in (variance / 2, variance * 2 / 3):
        law = pair(step=12.0, base=0.5, variance=broken, shares=3, rate=0.2, reach=160)
        assert composed(*law, 12, 1e-4) > said * 1.05


def test_rounding_that_is_not_accounted_for_is_seen() -> None:
    """With the chance of rounding known, a user of 0.6 steps moves the integers by 1: the real length would understate."""
    noise = discrete_gaussian(16.0, 120)
    moved = spent(np.roll(noise, 1), noise, 1e-3)
    assert moved > OPACUS.epsilon([Release(kind=ReleaseKind.TRAIN, noise_multiplier=4 / 0.6)], 1e-3).epsilon
    part = Integers(reach=0.6, dimension=1, failure=0.0, honest=1)
    assert moved <= OPACUS.epsilon([release(4 / part.norm, part=part)], 1e-3).epsilon


@pytest.mark.parametrize(("steps", "rate"), [(1, 1.0), (1, 0.3), (6, 0.3)])
def test_two_dimensions_exactly(steps: int, rate: float) -> None:
    step, base, reach = (5.3, 4.1), (0.2, 0.7), 150
    part = Integers(reach=math.hypot(*step), dimension=2, failure=0.0, honest=2)
    noise, delta = 1.1, 1e-3
    variance = (noise * part.norm) ** 2
    one, two = (pair(step=step[axis], base=base[axis], variance=variance, shares=2, rate=1.0, reach=reach) for axis in (0, 1))
    without = np.outer(one[1], two[1]).ravel()
    with_him = (1 - rate) * without + rate * np.outer(one[0], two[0]).ravel()
    exact = spent(with_him, without, delta) if steps == 1 else composed(with_him, without, steps, delta, grid=1e-3)
    said = DP_ACCOUNTING.epsilon([release(noise, rate, steps, part)], delta).epsilon
    assert 0.6 * said <= exact <= said  # norm is length + sqrt(2) here, a fifth more: small vectors round dearly


def test_a_group_is_accounted_with_its_rounding() -> None:
    part = Integers(reach=9.0, dimension=1, failure=0.0, honest=2)
    noise, rate, reach = 2.0, 0.3, 300
    law = discrete_gaussian((noise * part.norm) ** 2, reach)
    up = sum(math.comb(3, k) * rate**k * (1 - rate) ** (3 - k) * shifted(law, 9.0 * k + 0.4) for k in range(4))
    down = sum(math.comb(2, k) * rate**k * (1 - rate) ** (2 - k) * shifted(law, -9.0 * k + 0.4) for k in range(3))
    lost = spent(np.asarray(up), np.asarray(down), 1e-3)
    assert lost <= DP_ACCOUNTING.epsilon([release(noise, rate, part=part, group=3)], 1e-3).epsilon
    assert lost > DP_ACCOUNTING.epsilon([release(noise, rate, part=part)], 1e-3).epsilon


@pytest.mark.parametrize("accountant", [OPACUS, DP_ACCOUNTING], ids=lambda accountant: accountant.name)
def test_the_continuous_gaussian_is_the_limit_of_a_fine_scale(accountant: Accountant) -> None:
    continuous = accountant.epsilon([release(1.3, 0.1, 40, None)], 1e-5)
    above = []
    for scale in (4.0, 40.0, 1e3, 1e5):
        # The noise that is added is 1.3 clips; what it is over one user's integers depends on the scale.
        part = Integers(reach=scale * 10, dimension=300, failure=2.0**-64, honest=4)
        said = accountant.epsilon([release(1.3 * part.reach / part.norm, 0.1, 40, part)], 1e-5)
        assert said.accountant == continuous.accountant
        above.append(said.epsilon / continuous.epsilon - 1)
    assert above == sorted(above, reverse=True)
    assert above[0] > 0.2 and 0 <= above[-1] < 2e-3


# --- what failures cost ----------------------------------------------------------------------------------


def test_a_rounding_failure_is_paid_from_delta() -> None:
    delta = 1e-5
    base = release(2.0, 0.1, 50)
    fine = PREFERRED.epsilon([base], delta).epsilon
    ideal = discrete.gaussian([Removal(noise_multiplier=2.0, sample_rate=0.1, examples=1, steps=50, integers=PART)])
    assert ideal is not None
    gaussian = release(ideal[0].noise_multiplier, 0.1, 50, None)
    half = replace(PART, failure=delta / 2 / (50 * 0.1))
    costly = replace(base, integers=half, noise_multiplier=2.0)
    assert fine == pytest.approx(PREFERRED.epsilon([gaussian], delta).epsilon, rel=1e-6)
    # PART and `half` differ in norm, but at one noise multiplier only delta differs.
    assert PREFERRED.epsilon([costly], delta).epsilon == pytest.approx(PREFERRED.epsilon([gaussian], delta / 2).epsilon, rel=1e-4)
    assert PREFERRED.epsilon([replace(base, integers=replace(PART, failure=2 * half.failure))], delta).epsilon == math.inf


def test_a_group_pays_for_every_set_of_its_examples() -> None:
    def at(group: int, failure: float) -> float:
        return PREFERRED.epsilon([release(20.0, 0.05, 5, replace(PART, failure=failure), group)], 1e-4).epsilon

    assert at(2, 1e-5) < math.inf
    assert at(5, 1e-5) == math.inf
    assert at(MAX_INTEGER_GROUP, 2.0**-64) < math.inf


def test_the_sampler_is_paid_for_and_e_to_the_epsilon_too() -> None:
    removal = Removal(noise_multiplier=1.0, sample_rate=1.0, examples=1, steps=1, integers=PART)
    asked: list[float] = []

    def convert(delta: float) -> float:
        asked.append(delta)
        return 190.0

    assert discrete.integer_epsilon([removal], 1e-5, convert) == 190.0
    assert asked == [pytest.approx(1e-5)]  # far below the last digit of delta, so not asked again
    assert discrete.integer_epsilon([removal], 1e-5, lambda delta: 201.0) == math.inf
    assert discrete.integer_epsilon([replace(removal, integers=None)], 1e-5, lambda delta: 201.0) == 201.0


def test_a_worse_sampler_would_be_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    removal = Removal(noise_multiplier=1.0, sample_rate=1.0, examples=1, steps=1, integers=PART)
    shares = PART.dimension * PART.honest
    monkeypatch.setattr(discrete, "SAMPLER_BITS", 60)
    asked: list[float] = []

    def convert(delta: float) -> float:
        asked.append(delta)
        return 3.0 + (len(asked) > 1) / 4

    assert discrete.integer_epsilon([removal], 1e-5, convert) == pytest.approx(3.25)
    assert asked[1] == pytest.approx(1e-5 - shares * 2.0**-60 * (1 + math.exp(4.0)), rel=1e-6)
    monkeypatch.setattr(discrete, "SAMPLER_BITS", 30)
    assert discrete.integer_epsilon([removal], 1e-5, lambda delta: 3.0) == math.inf


@pytest.mark.parametrize("closeness_bits", [24, 100])
def test_every_failure_of_every_release_is_paid_for(closeness_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's three costs, summed here release by release, with bits so few that each of them can be seen."""
    monkeypatch.setattr(discrete, "CLOSENESS_BITS", closeness_bits)
    monkeypatch.setattr(discrete, "SAMPLER_BITS", 50)
    parts = [Integers(reach=100.0, dimension=300, local=50, failure=1e-5, honest=2), replace(PART, dimension=7, failure=3e-5)]
    # One of a rate that its group brings to 1, one far below; and one without integers, which costs nothing here.
    removals = [
        Removal(noise_multiplier=1.0, sample_rate=0.5, examples=3, steps=2, integers=parts[0]),
        Removal(noise_multiplier=1.0, sample_rate=0.1, examples=2, steps=5, integers=parts[1]),
        Removal(noise_multiplier=1.0, sample_rate=1.0, examples=9, steps=99),
    ]
    failure = 2 * 1.0 * 7 * 1e-5 + 5 * 0.2 * 3 * 3e-5
    shares = 2 * 350 * 2 + 5 * (7 + parts[1].local) * parts[1].honest
    closeness, sampler = shares * 2.0**-closeness_bits, shares * 2.0**-50
    asked: list[float] = []

    def convert(delta: float) -> float:
        asked.append(delta)
        return 3.0 + (len(asked) > 1) / 4

    epsilon = discrete.integer_epsilon(removals, 1e-2, convert)
    rest = (1e-2 - failure) * math.exp(-closeness)
    assert asked == pytest.approx([rest, rest - sampler * (1 + math.exp(4.0))], rel=1e-13)
    assert asked[0] != asked[1] and epsilon == pytest.approx(3.25 + 2 * closeness, rel=1e-13)
    for delta in (failure, failure / 2):
        assert discrete.integer_epsilon(removals, delta, lambda delta: 3.0) == math.inf


def test_no_epsilon_beyond_what_the_sampler_was_paid_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    removal = Removal(noise_multiplier=1.0, sample_rate=1.0, examples=1, steps=1, integers=PART)
    for first, told in ((discrete.LARGEST, discrete.LARGEST), (math.nextafter(discrete.LARGEST, math.inf), math.inf)):
        assert discrete.integer_epsilon([removal], 1e-5, lambda delta, first=first: first) == told  # type: ignore[misc]
    monkeypatch.setattr(discrete, "SAMPLER_BITS", 60)
    for second, told in ((3.99, 3.99), (4.01, math.inf)):
        answers = iter((3.0, second))
        assert discrete.integer_epsilon([removal], 1e-5, lambda delta, answers=answers: next(answers)) == told  # type: ignore[misc]


def test_what_a_plan_promises_its_rounds_keep() -> None:
    """The plan knows neither dimension nor honest platforms: they must not matter, not even for a huge budget."""
    for budget in (4.0, 500.0):
        z = noise_multiplier(budget=budget, delta=1e-3, planned=release(1.0, 0.3, 10, planning()))
        for dimension in (500, 300_000):
            point = FixedPoint(dimension=dimension, participants=50, honest=20, clip=1.0, noise_multiplier=z)
            assert PREFERRED.epsilon([release(z, 0.3, 1, point.integers)] * 10, 1e-3).epsilon <= budget


def test_shares_below_the_least_are_not_accounted_for() -> None:
    many = replace(PART, honest=4000)
    few = math.sqrt(LEAST_SHARE * many.honest) / many.norm
    assert PREFERRED.epsilon([release(few * 1.01, part=many)], 1e-5).epsilon < math.inf
    assert PREFERRED.epsilon([release(few * 0.99, part=many)], 1e-5).epsilon == math.inf
    assert PREFERRED.epsilon([release(0.0)], 1e-5).epsilon == math.inf
    assert PREFERRED.epsilon([release(few * 0.99, part=many), release(5.0, part=None)], 1e-5).accountant == Method.NONE


def test_honest_platforms_and_dimension_cost_nothing_that_can_be_seen() -> None:
    other = Integers(reach=PART.norm, dimension=1, failure=0.0, honest=1)
    many = replace(PART, honest=1000)
    assert PREFERRED.epsilon([release(2.0, 0.1, 50, many)], 1e-5) == PREFERRED.epsilon([release(2.0, 0.1, 50)], 1e-5)
    assert other.norm != PART.norm


# --- releases, calibration, plans --------------------------------------------------------------------------


def test_equal_integer_releases_are_added_up_and_never_mixed_with_others() -> None:
    coarse = replace(PART, reach=100.0)
    merged = merge_releases(
        [release(2.0, 0.1, 3), release(2.0, 0.1, 4), release(2.0, 0.1, 5, None), release(2.0, 0.1, 6, coarse)]
    )
    assert sorted((steps.steps, steps.integers and steps.integers.reach) for steps in merged) == [
        (5, None),
        (6, 100.0),
        (7, 500.0),
    ]


@pytest.mark.parametrize(
    "bad",
    [{"reach": 0.0}, {"reach": math.inf}, {"reach": "1"}, {"dimension": 0}, {"dimension": 2.0}, {"failure": 1.0}, {"honest": 0}],
)
def test_the_integer_part_is_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Integers(**{"reach": 1.0, "dimension": 2, "failure": 0.0, "honest": 1, **bad})


def test_a_release_takes_no_other_integer_part_and_no_group_beyond_its_proof() -> None:
    with pytest.raises(InputError, match="integers"):
        release(1.0, part={"reach": 3})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2\\^group_size"):
        release(1.0, group=MAX_INTEGER_GROUP + 1)
    assert release(1.0, part=None, group=MAX_INTEGER_GROUP + 1).group_size == 17


def test_calibration_finds_the_noise_of_an_integer_release() -> None:
    planned = release(1.0, 0.15, 50)
    noise = noise_multiplier(budget=1.0, delta=1e-5, planned=planned)
    assert 0.99 < OPACUS.epsilon([replace(planned, noise_multiplier=noise)], 1e-5).epsilon <= 1.0
    continuous = noise_multiplier(budget=1.0, delta=1e-5, planned=replace(planned, integers=None))
    assert noise == pytest.approx(continuous, rel=2e-3)  # no Rényi bound is paid for


def test_a_platform_of_few_users_may_plan_when_the_noise_is_shared() -> None:
    values: dict[str, Any] = {
        "budget": 1.5,
        "delta": 1e-4,
        "users": 30,
        "sample_rate": 0.15,
        "steps": 50,
        "prior_noise_multiplier": 12.0,
        "group_size": 1,
        "parameters": 20_000,
    }
    made = make_plan(**values, integers=PART, shared=True)
    assert made.releases[1].integers == PART and made.epsilon <= 1.5
    # Rounding lengthens a user's vector, so more noise is added than its multiplier says: the ratio knows.
    expected = 0.15 * 30 * math.sqrt(50) / (made.noise_multiplier * PART.norm / PART.reach * math.sqrt(20_000))
    assert made.signal_to_noise == pytest.approx(expected)
    assert made.signal_to_noise < 1
    with pytest.raises(InputError, match="group_size"):
        make_plan(**{**values, "group_size": 17}, integers=PART, shared=True)


INTEGERS = {"reach": 100.0, "dimension": 10, "failure": 0.1, "honest": 2, "local": 3}
LIMITS = {
    "reach": (1e-9, 2.0**40, [0.0, 2.0**40 + 1, math.inf, True, "1"]),
    "dimension": (1, 2**28, [0, 2**28 + 1, True, 1.0]),
    "failure": (0.0, math.nextafter(1, 0), [-1e-9, 1.0, math.nan]),
    "honest": (1, 2**16, [0, 2**16 + 1, 2.0]),
    "local": (0, 2**28, [-1, 2**28 + 1, False]),
}


@pytest.mark.parametrize("name", LIMITS)
def test_integers_are_what_can_be_accounted_for(name: str) -> None:
    least, most, wrong = LIMITS[name]
    for value in (least, most):
        assert getattr(Integers(**{**INTEGERS, name: value}), name) == value  # type: ignore[arg-type]
    for value in wrong:
        with pytest.raises(InputError, match=name):
            Integers(**{**INTEGERS, name: value})  # type: ignore[arg-type]
    whole = Integers(reach=100, dimension=10, failure=0, honest=2)
    assert (whole.local, type(whole.reach), type(whole.failure)) == (0, float, float)
