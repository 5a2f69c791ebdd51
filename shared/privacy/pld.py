"""Privacy loss distributions by dp-accounting: tight, both directions, groups exactly.

Pessimistic "connect the dots" discretisation (Doroshenko, Ghazi, Kamath, Kumar and Manurangsi
2022), so the result is an upper bound. A group of m examples is the mixture of Gaussians with
Binomial(m, q) sensitivities (see `groups`), which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import dp_event, rdp
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, identity
from scipy.special import logsumexp  # type: ignore[import-untyped]
from scipy.stats import binom  # type: ignore[import-untyped]

from shared.privacy.gaussian_loss import gaussian_loss
from shared.privacy.groups import CannotCompose, Removal
from shared.privacy.mixture_loss import mixture_loss

SMALLEST_DELTA = 1e-12
"""Below it the truncated tails (1e-15 a composition) and the FFT's rounding are no longer negligible."""

_LARGEST_SCALE = 2000.0
_POINTS = 400_000
_RARE = 1e-18


def pld_epsilon(removals: tuple[Removal, ...], delta: float) -> float:
    """An epsilon (>= 0) at `delta` of the composition of `removals`.

    Raises:
        CannotCompose: delta is too small, or the loss too large, for a grid; use the Rényi bound.
    """
    if delta < SMALLEST_DELTA:
        raise CannotCompose(f"delta {delta} is below {SMALLEST_DELTA}")
    spent = float(composed(removals).get_epsilon_for_delta(delta))
    if not math.isfinite(spent):
        raise CannotCompose(f"the result is {spent}")
    return max(0.0, spent)


@lru_cache(maxsize=4)  # a group asks for the same composition at two deltas
def composed(removals: tuple[Removal, ...]) -> PrivacyLossDistribution:
    """The loss of all of `removals`.

    Raises:
        CannotCompose: as `grid`.
    """
    width = grid(removals)
    total = identity(value_discretization_interval=width)
    for removal in removals:
        total = total.compose(_loss(removal, width))
    return total


def _loss(removal: Removal, width: float) -> PrivacyLossDistribution:
    """The loss of all its steps."""
    noise, rate, steps = removal.noise_multiplier, removal.sample_rate, removal.steps
    if rate == 1:
        # All steps are one Gaussian mechanism, exactly.
        whole = noise / (removal.examples * math.sqrt(steps))
        return gaussian_loss(whole, 1.0, width=width)
    if removal.examples == 1:
        return gaussian_loss(noise, rate, width=width).self_compose(steps)
    return mixture_loss(noise, *mixture(removal), width=width).self_compose(steps)


def renyi(removals: Sequence[Removal], delta: float) -> float:
    """Rényi bound by dp-accounting, on the coarse pair of `groups`, for where a grid cannot go."""
    # Whole orders only: dp-accounting's series for fractional ones does not always converge.
    accountant = rdp.RdpAccountant(orders=[*range(2, 64), *(64 * 2**k for k in range(8))])
    for removal in removals:
        noise, rate = removal.coarse
        accountant.compose(_sampled(noise, rate), removal.steps)
    spent = float(accountant.get_epsilon(delta)) if delta > 0 else math.inf
    return max(0.0, spent)


def grid(removals: Sequence[Removal]) -> float:
    """Grid width of the privacy loss, in nats. It decides precision and cost, never validity.

    A width w adds at most w²/4 to the variance of each step's loss. With w = s / (100 sqrt(steps)),
    s about epsilon, all steps together add at most s/200 to the standard deviation of the sum.

    Raises:
        CannotCompose: the grid would have too many points.
    """
    # s is read off a Gaussian mechanism of the same Rényi divergence of order 2, which is closed for a mixture:
    # E (sum_k p_k e^((2kx - k²)/2z²))² = sum_jk p_j p_k e^(jk / z²). Its epsilon is taken at delta = 1e-5.
    square = sum(removal.steps * _second_order(removal) for removal in removals)
    scale = square / 2 + math.sqrt(2 * square * math.log(1e5))
    if not scale <= _LARGEST_SCALE:
        raise CannotCompose("the privacy loss is too large for a grid")
    # A mixture's loss is inverted by bisection, which is dear: fewer points.
    widest = 1e-3 if all(removal.examples == 1 for removal in removals) else 4e-3
    steps = sum(removal.steps for removal in removals)
    width = max(1e-5, scale * 1e-5, min(widest, scale / (100 * math.sqrt(steps))))
    # One step's loss reaches as far as ten standard deviations beyond the largest shift.
    reach = max(r.examples * (10 * r.noise_multiplier + r.examples) / r.noise_multiplier**2 for r in removals)
    width = max(width, reach / _POINTS)
    if width > 0.02:
        raise CannotCompose("one step's privacy loss is too large for a grid")
    return width


def mixture(removal: Removal) -> tuple[list[int], list[float]]:
    """Sensitivities and their probabilities: Binomial(examples, sample_rate).

    Numbers too rare to matter (less than 1e-18 together) are counted as the largest: larger
    dominates smaller, and the probabilities keep their sum of 1 where the rarest would underflow.
    """
    examples, rate = removal.examples, removal.sample_rate
    common = [k for k in range(examples) if binom.sf(k - 1, examples, rate) > _RARE]
    weights = [float(weight) for weight in binom.pmf(common, examples, rate)]
    return [*common, examples], [*weights, float(binom.sf(common[-1], examples, rate))]


def _second_order(removal: Removal) -> float:
    if removal.sample_rate == 1:
        return (removal.examples / removal.noise_multiplier) ** 2
    sensitivities, weights = mixture(removal)
    k, p = np.array(sensitivities, dtype=np.float64), np.array(weights)
    return max(0.0, float(logsumexp(np.outer(k, k) / removal.noise_multiplier**2, b=np.outer(p, p))))


def _sampled(noise: float, rate: float) -> Any:
    gaussian = dp_event.GaussianDpEvent(noise)
    return gaussian if rate == 1 else dp_event.PoissonSampledDpEvent(rate, gaussian)
