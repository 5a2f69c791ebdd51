"""The grid of the numerical composition is as fine as the theorem needs for the error that is added."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from opacus.accountants.analysis import prv as opacus_prv
from opacus.accountants.analysis.prv.domain import compute_safe_domain_size

from shared.ledger.checks import order_problems
from shared.privacy import prv
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, RENYI
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

DIRECTIONS = (opacus_prv.PoissonSubsampledGaussianPRV, prv.Addition)
WORLDS = [(2.0, 0.1, [300]), (5.0, 1.0, [40]), (3.0, 0.02, [500, 1500]), (2.0, 0.5, [1]), (2.0, 0.5, [1, 1])]


@pytest.mark.parametrize(("noise", "rate", "steps"), WORLDS)
def test_the_width_follows_from_the_error_that_is_added(
    monkeypatch: pytest.MonkeyPatch, noise: float, rate: float, steps: list[int]
) -> None:
    """Gopi, Lee and Wutschitz 2021, Theorem 5.5: h = error / sqrt(k / 2 log(12 / delta_error)) for k compositions.

    A coarser grid would make no upper bound of what is read off it.
    """
    grids: list[tuple[float, float, float]] = []
    added: list[tuple[float, float]] = []
    aligned, read = opacus_prv.Domain.create_aligned, opacus_prv.DiscretePRV.compute_epsilon

    def grid(low: float, high: float, width: float) -> Any:
        grids.append((low, high, width))
        return aligned(low, high, width)

    def epsilon(self: Any, delta: float, delta_error: float, eps_error: float) -> Any:
        added.append((delta_error, eps_error))
        return read(self, delta, delta_error, eps_error)

    monkeypatch.setattr(opacus_prv.Domain, "create_aligned", grid)
    monkeypatch.setattr(opacus_prv.DiscretePRV, "compute_epsilon", epsilon)
    releases = [
        Release(kind=ReleaseKind.TRAIN, noise_multiplier=noise + at, sample_rate=rate, steps=count, group_size=1)
        for at, count in enumerate(steps)
    ]
    OPACUS.epsilon(releases, 1e-5)
    ((low, high, width),) = grids
    assert len(added) == (1 if rate == 1 else 2)  # both directions, which are one without sampling
    for delta_error, error in added:
        assert delta_error <= 1e-5 / 1000 * (1 + 1e-9) and 0 < error <= 0.01
        assert width == pytest.approx(error / math.sqrt(sum(steps) / 2 * math.log(12 / delta_error)), rel=1e-9)
    # As far as Opacus has it by itself (Remark 5.6); its Rényi orders are others than ours.
    losses = [opacus_prv.PoissonSubsampledGaussianPRV(release.sample_rate, release.noise_multiplier) for release in releases]
    delta_error, error = added[0]
    assert -low == high == pytest.approx(compute_safe_domain_size(losses, steps, error, delta_error), rel=0.01)


@pytest.mark.parametrize(
    "loss",
    [kind(rate, noise) for noise, rate in [(2.0, 0.1), (0.4, 0.5), (30.0, 1e-3), (0.7, 0.99)] for kind in DIRECTIONS]
    + [opacus_prv.PoissonSubsampledGaussianPRV(1.0, 5.0)],
)
def test_a_loss_is_discretised_as_opacus_does(loss: Any) -> None:
    domain = opacus_prv.Domain.create_aligned(-12.0, 12.0, 1e-4)
    with np.errstate(all="ignore"):
        truncated = opacus_prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max)
        ours, theirs = prv._discretised(opacus_prv, loss, domain), opacus_prv.discretize(truncated, domain)
        assert prv._mean(loss, domain.t_min, domain.t_max) == pytest.approx(truncated.mean(), abs=1e-7)
    np.testing.assert_allclose(ours.pmf, theirs.pmf, rtol=0, atol=1e-12)
    assert ours.domain.t_min == pytest.approx(theirs.domain.t_min, abs=1e-7)


def test_a_grid_that_is_too_coarse_for_a_loss_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = opacus_prv.Domain.create_aligned(-12.0, 12.0, 1e-3)
    mean = prv._mean
    monkeypatch.setattr(prv, "_mean", lambda *at: mean(*at) + 6e-4)
    with pytest.raises(RuntimeError, match="mean"):
        prv._discretised(opacus_prv, prv.Addition(0.1, 2.0), domain)


def test_of_many_steps_that_spend_little_the_error_is_large_and_the_bound_is_not_called_tight() -> None:
    """Some 7 % above dp-accounting at 50,000 steps: no disagreement, and no figure to refute another by."""
    release = Release(kind=ReleaseKind.TRAIN, noise_multiplier=10.0, sample_rate=1e-3, steps=50_000)
    often, seldom = OPACUS.epsilon([release], 1e-5), OPACUS.epsilon([replace(release, steps=500, sample_rate=0.1)], 1e-5)
    exact = DP_ACCOUNTING.epsilon([release], 1e-5).epsilon
    assert often.accountant == seldom.accountant == Method.OPACUS_PRV
    assert 1.02 * exact < often.epsilon < 1.2 * exact and not often.tight
    assert seldom.tight
    assert not list(order_problems(RENYI.epsilon([release], 1e-5), often, DP_ACCOUNTING.epsilon([release], 1e-5)))
