"""The grid of the numerical composition is as fine as the theorem needs for the error that is added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from opacus.accountants.analysis import prv as opacus_prv
from opacus.accountants.analysis.prv.domain import compute_safe_domain_size

from shared.ledger.checks import order_problems
from shared.privacy import prv, rdp
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, RENYI
from shared.privacy.groups import Removal
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

DIRECTIONS = (prv.RemovalLoss, prv.AdditionLoss)
WORLDS = [(2.0, 0.1, [300]), (5.0, 1.0, [40]), (3.0, 0.02, [500, 1500]), (2.0, 0.5, [1]), (2.0, 0.5, [1, 1])]


@pytest.mark.parametrize(("noise", "rate", "steps"), WORLDS)
def test_the_width_follows_from_the_error_that_is_added(noise: float, rate: float, steps: list[int]) -> None:
    """Gopi, Lee and Wutschitz 2021, Theorem 5.5: h = error / sqrt(k / 2 log(12 / delta_error)) for k compositions.

    A coarser grid would make no upper bound of what is read off it.
    """
    removals = [Removal(noise_multiplier=noise + at, sample_rate=rate, examples=1, steps=count) for at, count in enumerate(steps)]
    rough, grids = rdp.rdp_epsilon(removals, 1e-5), list[prv.Grid]()

    def composed(losses: Sequence[prv.Loss], steps: Sequence[int], grid: prv.Grid, delta: float) -> float:
        grids.append(grid)
        assert len(grid.points) == grid.size and np.diff(grid.points) == pytest.approx(grid.width)
        # What is read off it is at a smaller delta, and lifted by the error.
        found, bare = prv.compose_losses(losses, steps, grid, delta), replace(grid, error=0.0, delta_error=0.0)
        assert found == pytest.approx(prv.compose_losses(losses, steps, bare, delta - grid.delta_error) + grid.error, rel=1e-9)
        return found

    prv.prv_epsilon(removals, 1e-5, rough=rough, compose=composed)
    assert len(grids) == (1 if rate == 1 else 2)  # both directions, which are one without sampling
    grid = grids[0]
    assert grid.delta_error <= 1e-5 / 1000 * (1 + 1e-9) and 0 < grid.error <= 0.01
    assert grid.width == pytest.approx(grid.error / math.sqrt(sum(steps) / 2 * math.log(12 / grid.delta_error)), rel=1e-9)
    # As far as Opacus has it by itself (Remark 5.6), or a little further; its Rényi orders are others than ours.
    losses = [opacus_prv.PoissonSubsampledGaussianPRV(rate, noise + at) for at in range(len(steps))]
    reach = compute_safe_domain_size(losses, steps, grid.error, grid.delta_error)
    assert 0.99 * reach < -grid.ends[0] < 1.07 * reach and grid.ends[1] > -grid.ends[0]


@pytest.mark.parametrize(
    "loss",
    [kind(rate, noise) for noise, rate in [(2.0, 0.1), (0.4, 0.5), (30.0, 1e-3), (0.7, 0.99)] for kind in DIRECTIONS]
    + [prv.RemovalLoss(1.0, 5.0)],
)
def test_a_loss_is_discretised_as_opacus_does(loss: prv.Loss) -> None:
    grid = prv.Grid(width=1e-4, half=120_000, error=0.01, delta_error=1e-8)
    domain = opacus_prv.Domain.create_aligned(-12.0, 12.0, 1e-4)
    assert domain.size == grid.size and (domain.t_min, domain.t_max) == pytest.approx(grid.ends)
    # Opacus has the removal alone.
    of_opacus = opacus_prv.PoissonSubsampledGaussianPRV(loss.sample_rate, loss.noise_multiplier)
    with np.errstate(all="ignore"):
        theirs: Any = of_opacus if isinstance(loss, prv.RemovalLoss) else loss
        truncated = opacus_prv.TruncatedPrivacyRandomVariable(theirs, domain.t_min, domain.t_max)
        (masses, shift), expected = prv.discretised(loss, grid), opacus_prv.discretize(truncated, domain)
        assert prv._mean(loss, domain.t_min, domain.t_max) == pytest.approx(truncated.mean(), abs=1e-7)
    np.testing.assert_allclose(masses, expected.pmf, rtol=0, atol=1e-12)
    assert grid.ends[0] + shift == pytest.approx(expected.domain.t_min, abs=1e-7)


@pytest.mark.parametrize("noise", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("kind", DIRECTIONS)
def test_the_mean_of_a_whole_sample_is_known(kind: type[prv.Loss], noise: float) -> None:
    # Between N(0, z^2) and N(1, z^2) it is 1 / (2 z^2) either way.
    with np.errstate(divide="ignore"):
        assert prv._mean(kind(1.0, noise), -600.0, 600.0) == pytest.approx(0.5 / noise**2, rel=1e-9)


def test_a_grid_that_is_too_coarse_for_a_loss_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = prv._mean
    monkeypatch.setattr(prv, "_mean", lambda *at: mean(*at) + 6e-4)
    with pytest.raises(RuntimeError, match="mean"):
        prv.discretised(prv.AdditionLoss(0.1, 2.0), prv.Grid(width=1e-3, half=12_000, error=0.01, delta_error=1e-8))


def test_of_many_steps_that_spend_little_the_error_is_large_and_the_bound_is_not_called_tight() -> None:
    """Some 7 % above dp-accounting at 50,000 steps: no disagreement, and no figure to refute another by."""
    release = Release(kind=ReleaseKind.TRAIN, noise_multiplier=10.0, sample_rate=1e-3, steps=50_000)
    often, seldom = OPACUS.epsilon([release], 1e-5), OPACUS.epsilon([replace(release, steps=500, sample_rate=0.1)], 1e-5)
    exact = DP_ACCOUNTING.epsilon([release], 1e-5).epsilon
    assert often.accountant == seldom.accountant == Method.OPACUS_PRV
    assert 1.02 * exact < often.epsilon < 1.2 * exact and not often.tight
    assert seldom.tight
    assert not list(order_problems(RENYI.epsilon([release], 1e-5), often, DP_ACCOUNTING.epsilon([release], 1e-5)))
