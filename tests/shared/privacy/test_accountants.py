"""Every accountant against one contract, and against oracles that share no code with any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

from shared.base.errors import InputError
from shared.privacy import accountants, opacus_reference, pld, prv, rdp
from shared.privacy.accountants import DP_ACCOUNTING, NUMERICAL, OPACUS, PREFERRED, RENYI, Accountant
from shared.privacy.groups import CannotCompose, Removal, triangle
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

DELTA = 1e-5


def release(noise: float, rate: float = 1.0, steps: int = 1, group: int = 1) -> Release:
    return Release(kind=ReleaseKind.TRAIN, noise_multiplier=noise, sample_rate=rate, steps=steps, group_size=group)


# --- oracles -------------------------------------------------------------------------------------


def gaussian(shift: float, delta: float) -> float:
    """Analytic Gaussian mechanism: Balle and Wang 2018, "Improving the Gaussian mechanism", Theorem 8."""

    def excess(epsilon: float) -> float:
        one = norm.cdf(shift / 2 - epsilon / shift)
        two = math.exp(epsilon + norm.logcdf(-shift / 2 - epsilon / shift))
        return float(one - two - delta)

    return float(brentq(excess, 0, shift * shift + 40 * shift, xtol=1e-10)) if excess(0) > 0 else 0.0


def mixture(centres: list[float], weights: list[float], noise: float) -> Any:
    """Log density of a one-dimensional mixture of Gaussians."""

    def log_density(x: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = [math.log(w) + norm.logpdf(x, c, noise) for c, w in zip(centres, weights, strict=True) if w > 0]
        return np.logaddexp.reduce(parts)

    return log_density


def exact(p: Any, q: Any, delta: float, *, reach: float) -> float:
    """Epsilon of the pair at delta, both directions, from hockey-stick divergences integrated on a grid."""
    x = np.linspace(-reach, reach, 40_001)
    log_p, log_q = p(x), q(x)

    def one(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        def excess(epsilon: float) -> float:
            return float(np.trapezoid(np.maximum(np.exp(a) - np.exp(epsilon + b), 0), x)) - delta

        return float(brentq(excess, 0, 60, xtol=1e-5)) if excess(0) > 0 else 0.0

    return max(one(log_p, log_q), one(log_q, log_p))


@lru_cache
def removal(examples: int, noise: float, rate: float, delta: float) -> float:
    """Epsilon of one Poisson-sampled Gaussian sum from which `examples` equal unit vectors are removed."""
    weights = [float(w) for w in binom.pmf(range(examples + 1), examples, rate)]
    with_them = mixture([float(k) for k in range(examples + 1)], weights, noise)
    return exact(with_them, mixture([0.0], [1.0], noise), delta, reach=examples + 12 * noise)


# --- the contract --------------------------------------------------------------------------------

ACCOUNTANTS = [
    pytest.param(NUMERICAL, id="numerical"),
    pytest.param(OPACUS, id="opacus"),
    pytest.param(DP_ACCOUNTING, id="dp-accounting"),
    pytest.param(RENYI, id="opacus-rdp"),
]


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
class TestContract:
    """What every accountant must do."""

    def test_nothing_costs_nothing(self, accountant: Accountant) -> None:
        assert accountant.epsilon([], DELTA).epsilon == 0

    def test_no_noise_costs_everything(self, accountant: Accountant) -> None:
        assert accountant.epsilon([release(5.0, 0.1), release(0.0, 0.1)], DELTA).epsilon == math.inf

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, "x"])
    def test_delta_is_checked(self, accountant: Accountant, delta: Any) -> None:
        with pytest.raises(InputError, match="delta"):
            accountant.epsilon([release(1.0)], delta)

    def test_more_steps_rate_group_or_less_noise_cost_more(self, accountant: Accountant) -> None:
        base = release(4.0, 0.1, 50)
        spent = accountant.epsilon([base], DELTA).epsilon
        assert spent > 0
        for worse in (
            replace(base, steps=60),
            replace(base, sample_rate=0.12),
            replace(base, noise_multiplier=3.5),
            replace(base, group_size=2),
        ):
            assert accountant.epsilon([worse], DELTA).epsilon > spent * 1.02, worse
        assert accountant.epsilon([base, release(6.0)], DELTA).epsilon > spent * 1.02
        assert accountant.epsilon([base], DELTA / 10).epsilon > spent

    def test_order_and_slicing_do_not_matter(self, accountant: Accountant) -> None:
        prior, evaluation = release(3.0), replace(release(10.0), kind=ReleaseKind.EVALUATE)
        whole = accountant.epsilon([prior, release(3.0, 0.15, 100), evaluation], DELTA)
        sliced = accountant.epsilon([evaluation, *[release(3.0, 0.15, 20)] * 5, prior], DELTA)
        assert sliced == whole

    def test_steps_are_added_up(self, accountant: Accountant) -> None:
        # Would fail if a new accountant began each round (Flower's Opacus example): the truth grows as sqrt(rounds).
        rounds = accountant.epsilon([release(10.0)] * 100, DELTA).epsilon
        assert rounds >= gaussian(1.0, DELTA) * 0.9999
        assert rounds > 5 * accountant.epsilon([release(10.0)], DELTA).epsilon

    @pytest.mark.parametrize("noise", [0.2, 1.0, 30.0])
    @pytest.mark.parametrize("delta", [1e-3, 1e-6])
    def test_the_gaussian_mechanism_has_a_closed_form(self, accountant: Accountant, noise: float, delta: float) -> None:
        truth = gaussian(1 / noise, delta)
        spent = accountant.epsilon([release(noise)], delta)
        assert spent.epsilon >= truth * (1 - 1e-6)
        if spent.tight:
            assert spent.epsilon <= max(truth * 1.01, truth + 1e-3)

    def test_different_gaussians_compose_to_one(self, accountant: Accountant) -> None:
        # Shifts add in quadrature: Dong, Roth and Su 2022, "Gaussian differential privacy", Corollary 3.3.
        truth = gaussian(math.sqrt(1 / 9 + 7 / 25 + 1 / 100), DELTA)
        spent = accountant.epsilon([release(3.0), release(5.0, steps=7), release(10.0)], DELTA)
        assert spent.epsilon >= truth * (1 - 1e-6)
        if spent.tight:
            assert spent.epsilon <= truth * 1.01

    @pytest.mark.parametrize(("noise", "rate"), [(0.6, 0.15), (1.0, 0.01), (0.8, 0.6), (2.0, 0.95)])
    def test_one_sampled_step_is_integrated(self, accountant: Accountant, noise: float, rate: float) -> None:
        truth = removal(1, noise, rate, DELTA)
        spent = accountant.epsilon([release(noise, rate)], DELTA)
        assert spent.epsilon >= truth * (1 - 1e-4)
        if spent.tight:
            # PRV adds its own error bound, at most 0.01 in epsilon, which shows where epsilon is small.
            assert spent.epsilon <= truth * 1.02 + 0.01

    @pytest.mark.parametrize("group", [2, 4])
    def test_a_group_is_never_understated(self, accountant: Accountant, group: int) -> None:
        noise, rate = 3.0, 0.15
        spent = accountant.epsilon([release(noise, rate, group=group)], DELTA)
        truth = triangle(
            lambda delta: removal(group, noise, rate, delta), lambda delta: removal(group - 1, noise, rate, delta), DELTA
        )
        assert spent.epsilon >= truth * (1 - 1e-3)
        if spent.tight:
            assert spent.epsilon <= truth * 1.03

    def test_an_attack_on_a_group(self, accountant: Accountant) -> None:
        """Three examples turn round when their friend leaves: the attack that ignoring group_size would not see."""
        noise, rate, group = 2.0, 0.3, 4
        up = mixture([float(k) for k in range(group + 1)], list(binom.pmf(range(group + 1), group, rate)), noise)
        down = mixture([-float(k) for k in range(group)], list(binom.pmf(range(group), group - 1, rate)), noise)
        lost = exact(up, down, DELTA, reach=group + 12 * noise)
        assert accountant.epsilon([release(noise, rate, group=group)], DELTA).epsilon >= lost
        assert accountant.epsilon([release(noise, rate)], DELTA).epsilon < lost / 2  # the test can fail

    @pytest.mark.parametrize("noise", [0.35, 0.15, 0.1])
    def test_large_epsilons_stay_bounds(self, accountant: Accountant, noise: float) -> None:
        truth = gaussian(2 / noise, DELTA)
        spent = accountant.epsilon([release(noise, steps=4)], DELTA)
        assert truth <= spent.epsilon < truth * 1.5


# --- the libraries against each other, and each method apart ---------------------------------------


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [(1.5, 0.15, 200, 1e-5), (5.0, 0.15, 3000, 1e-4), (0.7, 0.001, 10_000, 1e-5), (30.0, 0.15, 200, 1e-6), (4.0, 0.5, 100, 1e-9)],
)
def test_two_libraries_agree(noise: float, rate: float, steps: int, delta: float) -> None:
    plan = [release(20.0), release(noise, rate, steps)]
    one, two = OPACUS.epsilon(plan, delta), DP_ACCOUNTING.epsilon(plan, delta)
    assert (one.accountant, two.accountant) == (Method.OPACUS_PRV, Method.DP_ACCOUNTING_PLD)
    assert one.epsilon == pytest.approx(two.epsilon, rel=0.015)
    assert one.epsilon >= two.epsilon * 0.999


@pytest.mark.parametrize(
    ("plan", "delta"),
    [
        ([release(3.0)], 1e-5),
        ([release(2.0, 0.1, 300)], 1e-5),
        ([release(20.0), release(5.0, 0.15, 3000)], 1e-4),
        ([release(0.7, 0.001, 10_000)], 1e-5),
        ([release(4.0, 0.5, 100)], 1e-9),
        ([release(2.0, 0.5), release(3.0, 0.2, 7), release(9.0), release(30.0, 0.01, 500)], 1e-6),
        ([release(10.0, 1e-3, 50_000)], 1e-5),
        ([release(4.0, 0.1, 5, 3)], 1e-5),
        ([release(1.0, 0.15, 300)], 1e-5),
    ],
)
def test_our_composition_is_that_of_opacus(plan: list[Release], delta: float) -> None:
    ours, theirs = NUMERICAL.epsilon(plan, delta), OPACUS.epsilon(plan, delta)
    assert ours.epsilon == pytest.approx(theirs.epsilon, rel=1e-8)
    names = {Method.PRV: Method.OPACUS_PRV, Method.RDP: Method.OPACUS_RDP}
    assert (names[ours.accountant], ours.tight) == (theirs.accountant, theirs.tight)


def test_above_ten_the_renyi_bound_takes_over_and_says_so() -> None:
    for steps in (60, 100, 300):
        one = OPACUS.epsilon([release(1.0, 0.15, steps)], DELTA)
        two = DP_ACCOUNTING.epsilon([release(1.0, 0.15, steps)], DELTA)
        assert one.epsilon >= two.epsilon * 0.999
        assert one.accountant == (Method.OPACUS_PRV if one.tight else Method.OPACUS_RDP)
        assert one.tight == (two.epsilon < 9.9)


def test_the_fallback_does_not_understate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> float:
        raise CannotCompose("on purpose")

    monkeypatch.setattr(prv, "prv_epsilon", fails)
    monkeypatch.setattr(pld, "pld_epsilon", fails)
    accountants._interpret.cache_clear()
    try:
        cases = [release(1.3, 0.15, 77), release(0.6, 0.02, 301), release(2.7, 0.15, 150, 2)]
        loose = [tuple(one.epsilon([case], DELTA) for one in (NUMERICAL, OPACUS, DP_ACCOUNTING)) for case in cases]
    finally:
        monkeypatch.undo()
        accountants._interpret.cache_clear()
    for case, found in zip(cases, loose, strict=True):
        tight = DP_ACCOUNTING.epsilon([case], DELTA).epsilon
        assert [one.accountant for one in found] == [Method.RDP, Method.OPACUS_RDP, Method.DP_ACCOUNTING_RDP]
        assert not any(one.tight for one in found)
        assert all(one.epsilon >= tight for one in found)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_refused(nonsense: float) -> None:
    def composed(*_: object) -> float:
        return nonsense

    with pytest.raises(CannotCompose):
        prv.prv_epsilon([Removal(noise_multiplier=2.0, sample_rate=0.1, examples=1, steps=5)], DELTA, rough=3.0, compose=composed)


@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.2), (2.0, 0.05), (1.0, 1.0)])
@pytest.mark.parametrize("removed", [True, False])
def test_a_loss_has_the_distribution_it_claims(noise: float, rate: float, removed: bool) -> None:
    random = np.random.default_rng(0)
    x = random.normal(0, noise, 400_000) + (random.random(400_000) < rate if removed else 0)
    loss = np.logaddexp(np.log(rate) + (2 * x - 1) / (2 * noise**2), np.log1p(-rate) if rate < 1 else -np.inf)
    loss = loss if removed else -loss
    at = np.quantile(loss, [0.01, 0.2, 0.5, 0.9, 0.999])
    claimed = prv.RemovalLoss(rate, noise) if removed else prv.AdditionLoss(rate, noise)
    with np.errstate(all="ignore"):
        assert claimed.cdf(at) == pytest.approx(np.searchsorted(np.sort(loss), at) / len(x), abs=4e-3)
        assert claimed.cdf(np.array([-1e3, 300.0])) == pytest.approx([0, 1])


@pytest.mark.parametrize("composed", [prv.compose_losses, opacus_reference.opacus_composed])
def test_both_directions_are_composed(composed: prv.LossComposer) -> None:
    seen: list[type] = []

    def spy(losses: Sequence[prv.Loss], steps: Sequence[int], grid: prv.Grid, delta: float) -> float:
        seen.append(type(losses[0]))
        return composed(losses, steps, grid, delta)

    prv.prv_epsilon([Removal(noise_multiplier=2.0, sample_rate=0.1, examples=1, steps=5)], DELTA, rough=3.0, compose=spy)
    assert seen == [prv.RemovalLoss, prv.AdditionLoss]


@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.15), (2.0, 0.7), (20.0, 0.01)])
def test_renyi_orders_are_integrated(noise: float, rate: float) -> None:
    curve = rdp.curve(noise, rate)
    for index in range(7, 120, 8):
        order = rdp.ORDERS[index]
        x = np.linspace(-14 * noise, order + 14 * noise, 100_001)
        ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * x - 1) / (2 * noise**2))
        top = np.max(order * ratio + norm.logpdf(x, 0, noise))
        moment = np.log(np.trapezoid(np.exp(order * ratio + norm.logpdf(x, 0, noise) - top), x)) + top
        assert curve[index] == pytest.approx(moment / (order - 1), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize(
    ("noise", "rate"),
    [(0.4, 0.5), (1.0, 0.1), (0.05, 0.2), (0.3, 0.9), (3.0, 1.0), (5.0, 0.99), (1.5, 1e-4), (8.0, 0.5), (300.0, 0.3)],
)
def test_renyi_orders_are_those_of_opacus(noise: float, rate: float) -> None:
    from opacus.accountants.analysis.rdp import compute_rdp

    with np.errstate(all="ignore"):
        theirs = [compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=float(order)) for order in rdp.ORDERS]
    np.testing.assert_allclose(rdp.curve(noise, rate), theirs, rtol=1e-8, atol=1e-10)  # their digits, too


@pytest.mark.parametrize(("noise", "rate"), [(1e8, 1e-4), (1e8, 1e-9), (300.0, 1e-12), (1e4, 0.5)])
def test_a_divergence_is_never_zero(noise: float, rate: float) -> None:
    # Digits are lost so that a term is no different from 1: an order that says nothing, not one that promises everything.
    assert (rdp.curve(noise, rate) > 0).all()


def test_renyi_orders_whose_series_has_no_end_in_sight_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdp, "_MOST_TERMS", 64)
    curve = rdp.curve.__wrapped__(50.0, 0.5)  # terms fall only beyond eight times the noise
    fractional = np.array(rdp.ORDERS) % 1 > 0
    assert np.isinf(curve[fractional & (np.array(rdp.ORDERS) < 3)]).all() and np.isfinite(curve[~fractional]).all()


@pytest.mark.parametrize(
    ("accountant", "delta"),
    [(NUMERICAL, 1e-10), (NUMERICAL, 1e-30), (OPACUS, 1e-10), (DP_ACCOUNTING, 1e-12), (DP_ACCOUNTING, 1e-30), (OPACUS, 1e-30)],
)
def test_tiny_deltas_do_not_drown_in_rounding(accountant: Accountant, delta: float) -> None:
    # The second step of a group asks for deltas like these.
    truth = gaussian(math.sqrt(1 / 9 + 200 / 400), delta)
    spent = accountant.epsilon([release(3.0), release(20.0, steps=200)], delta)
    assert spent.tight == (delta > 1e-20)
    assert truth * 0.9999 <= spent.epsilon <= truth * (1.01 if spent.tight else 1.2)


def test_preferred_takes_the_exact_mixture_for_groups_and_the_composition_otherwise() -> None:
    plain, group = [release(20.0), release(4.0, 0.1, 5)], [release(20.0), release(4.0, 0.1, 5, 3)]
    assert PREFERRED.epsilon(plain, DELTA) == NUMERICAL.epsilon(plain, DELTA)
    assert PREFERRED.epsilon(group, DELTA) == DP_ACCOUNTING.epsilon(group, DELTA)


def test_sampling_at_one_is_no_sampling() -> None:
    for accountant in (NUMERICAL, OPACUS, DP_ACCOUNTING):
        almost = accountant.epsilon([release(2.0, 1 - 1e-9)], DELTA).epsilon
        assert accountant.epsilon([release(2.0, 1.0)], DELTA).epsilon == pytest.approx(almost, rel=5e-3)
