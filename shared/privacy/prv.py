"""Numerical composition by Opacus' PRV machinery: tight, in both directions.

Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy": the privacy loss is
discretised, composed by FFT, and read off with the error bounds of Theorem 5.5 added, so the
result is an upper bound.

Opacus' own accountant composes the removal direction only. Under composition neither direction is
known to be the worse one (Lebeda, Regehr, Kamath and Steinke 2024, "Avoiding pitfalls for privacy
accounting of subsampled mechanisms under composition"), so the addition is composed here too, by
the same machinery, and the larger epsilon counts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr  # type: ignore[import-untyped]

from shared.privacy import rdp
from shared.privacy.groups import CannotCompose, Removal

SMALLEST_DELTA = 1e-10
"""Below it the rounding of a float64 FFT (about 1e-16 a point) is no longer negligible."""

_RELATIVE_ERROR = 1 / 200
_POINTS = 1_000_000


class Addition:
    """Privacy loss of N(0, z²) against (1 - q) N(0, z²) + q N(1, z²), under the former.

    Opacus' `PoissonSubsampledGaussianPRV` with the roles exchanged. The loss at x is
    -log(1 - q + q e^((2x - 1) / 2z²)), which falls in x and stays below -log(1 - q).
    """

    def __init__(self, sample_rate: float, noise_multiplier: float) -> None:
        self.sample_rate = sample_rate
        self.noise_multiplier = noise_multiplier

    def cdf(self, t: Any) -> NDArray[np.float64]:
        """P(loss <= t), float64, the shape of `t`."""
        rate, noise = self.sample_rate, self.noise_multiplier
        ratio = (np.exp(-np.asarray(t, dtype=np.float64)) - (1 - rate)) / rate
        x = noise * np.log(np.where(ratio > 0, ratio, 1.0)) + 0.5 / noise  # loss <= t iff noise * x <= sample
        return np.where(ratio > 0, np.exp(log_ndtr(-x)), 1.0)


@dataclass(frozen=True, kw_only=True)
class PrvBound:
    """What the composition gives.

    Args:
        epsilon: Upper bound, >= 0.
        error: What the grid's coarseness added to it; it grows with the square root of the steps.
    """

    epsilon: float
    error: float


def prv_epsilon(removals: Sequence[Removal], delta: float, *, rough: float) -> PrvBound:
    """Epsilon at `delta` of the composition of `removals`, both directions.

    Args:
        removals: What is composed; groups enter through the coarse pair of `groups`.
        delta: At least `SMALLEST_DELTA`.
        rough: Any upper bound of the result; the error is made small against it.

    Raises:
        CannotCompose: the discretisation fails (opacus#591, #601, #604); use the Rényi bound.
    """
    from opacus.accountants.analysis import prv as opacus_prv

    if delta < SMALLEST_DELTA:
        raise CannotCompose(f"delta {delta} is below {SMALLEST_DELTA}")
    pairs = [removal.coarse for removal in removals]
    steps = [removal.steps for removal in removals]
    delta_error = delta / 1000
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            forward = [opacus_prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate in pairs]
            half_width = _half_width(removals, delta_error)
            per_error = math.sqrt(sum(steps) * math.log(12 / delta_error) / 2)
            error = max(min(0.01, rough * _RELATIVE_ERROR), 2 * half_width * per_error / _POINTS)
            if not error < 0.5:
                raise CannotCompose(f"the grid would need an error of {error} in epsilon")
            domain = opacus_prv.Domain.create_aligned(-half_width, half_width, error / per_error)
            directions: list[list[Any]] = [forward]
            if any(rate < 1 for _, rate in pairs):  # without sampling the pair is symmetric
                directions.append([Addition(rate, noise) for noise, rate in pairs])
            spent = [
                _read(opacus_prv, direction, steps, domain, delta=delta, delta_error=delta_error, error=error)
                for direction in directions
            ]
        except (RuntimeError, ValueError, OverflowError, ZeroDivisionError, MemoryError) as reason:
            raise CannotCompose(str(reason)) from None
    largest = max(spent)
    if not math.isfinite(largest):
        raise CannotCompose(f"the result is {largest}")
    return PrvBound(epsilon=max(0.0, largest), error=error)


def _half_width(removals: Sequence[Removal], delta_error: float) -> float:
    """How far the grid must reach (Remark 5.6), as Opacus' `compute_safe_domain_size` has it.

    Over our own Rényi curves, which are remembered: Opacus works its own out anew in every call, for the better part of the
    time of a plan. They bound both directions (see `rdp`).
    """
    single = delta_error / (8 * sum(removal.steps for removal in removals))
    widest = max(rdp.rdp_epsilon([replace(removal, steps=1)], single) for removal in removals)
    half_width = max(widest, rdp.rdp_epsilon(removals, delta_error / 4), 0.01) + 3
    if not math.isfinite(half_width):
        raise CannotCompose("the privacy loss has no bound that a grid could reach")
    return half_width


def _read(
    opacus_prv: Any, losses: list[Any], steps: list[int], domain: Any, *, delta: float, delta_error: float, error: float
) -> float:
    composed = opacus_prv.compose_heterogeneous(
        dprvs=[_discretised(opacus_prv, loss, domain) for loss in losses], num_self_compositions=list(steps)
    )
    _, _, upper = composed.compute_epsilon(delta, delta_error, error)
    return float(upper)


def _discretised(opacus_prv: Any, loss: Any, domain: Any) -> Any:
    """As Opacus' `discretize` of the truncated loss, but each edge of the grid is looked at once, and the mean is `_mean`.

    Raises:
        RuntimeError: the grid is too coarse for this loss.
    """
    truncated = opacus_prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max)
    edges = np.append(domain.ts - domain.dt / 2, domain.ts[-1] + domain.dt / 2)
    masses = np.diff(truncated.cdf(edges))
    shift = _mean(loss, domain.t_min, domain.t_max) - float(domain.ts @ masses)
    if not abs(shift) < domain.dt / 2:
        raise RuntimeError("the mean of the grid differs from that of the loss")
    return opacus_prv.DiscretePRV(pmf=masses, domain=domain.shift_right(shift))


def _mean(loss: Any, low: float, high: float) -> float:
    """Mean of a loss of either direction, given that it lies between `low` and `high`.

    It is integrated over the mechanism's output x, where all is smooth: Gauss-Legendre on pieces of a fraction of the noise, and
    finer around the bend of the loss. Opacus integrates P(loss <= t) adaptively, point by point, for half of the time of a
    composition.
    """
    rate, noise = loss.sample_rate, loss.noise_multiplier
    added = isinstance(loss, Addition)
    low, high = (-high, -low) if added else (low, high)
    first, last = -12 * noise, 12 * noise + (0 if added else 1)  # what is beyond has a mass of 1e-32
    bend = 0.5 + noise**2 * (math.log(1 / rate - 1) if rate < 1 else 0)
    ends = np.concatenate([np.linspace(first, last, 129), bend + noise**2 * np.linspace(-40, 40, 81)])
    ends = np.unique(np.clip(ends, max(first, _output(low, rate, noise)), min(last, _output(high, rate, noise))))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(ends)[:, None] / 2
    x = ends[:-1, None] + half * (nodes + 1)
    ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + (x - 0.5) / noise**2)
    mass = np.exp(-((x / noise) ** 2) / 2 + (0 if added else ratio)) * weights * half
    return float((mass * (-ratio if added else ratio)).sum() / mass.sum())


def _output(ratio: float, rate: float, noise: float) -> float:
    """The output x at which log(1 - q + q e^((2x - 1) / 2z²)) is `ratio`; -infinity where that is below its end."""
    above = math.exp(ratio) - (1 - rate)
    return 0.5 + noise**2 * math.log(above / rate) if above > 0 else -math.inf
