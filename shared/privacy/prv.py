"""Numerical composition of privacy losses: tight, in both directions.

Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy": each mechanism's privacy loss is cut to a grid, all
are composed at once by FFT, and epsilon is read off with the error bounds of Theorem 5.5 added, so the result is an upper bound.
It is what Opacus' PRV accountant computes; `opacus_reference` has Opacus do it, on the same grid, for an auditor.

Under composition neither direction is known to be the worse one (Lebeda, Regehr, Kamath and Steinke 2024, "Avoiding pitfalls for
privacy accounting of subsampled mechanisms under composition"), so the addition is composed beside the removal, and the larger
epsilon counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft  # type: ignore[import-untyped]
from scipy.special import log_ndtr, ndtr  # type: ignore[import-untyped]

from shared.privacy import rdp
from shared.privacy.groups import CannotCompose, Removal

SMALLEST_DELTA = 1e-10
"""Below it the rounding of a float64 FFT (about 1e-16 a point) is no longer negligible."""

_RELATIVE_ERROR = 1 / 200
_POINTS = 1_000_000

Floats = NDArray[np.float64]


class Loss(Protocol):
    """The privacy loss of one step of a sampled Gaussian mechanism of sensitivity 1, in one direction."""

    @property
    def sample_rate(self) -> float:
        """q."""
        ...

    @property
    def noise_multiplier(self) -> float:
        """z."""
        ...

    def cdf(self, t: Floats) -> Floats:
        """P(loss <= t), float64, the shape of `t`."""
        ...


@dataclass(frozen=True)
class RemovalLoss:
    """Privacy loss of (1 - q) N(0, z²) + q N(1, z²) against N(0, z²), under the former.

    The loss at x is log(1 - q + q e^((2x - 1) / 2z²)), which grows with x and stays above log(1 - q).
    """

    sample_rate: float
    noise_multiplier: float

    def cdf(self, t: Floats) -> Floats:
        """See `Loss.cdf`."""
        rate, noise = self.sample_rate, self.noise_multiplier
        ratio = (np.exp(t) - (1 - rate)) / rate
        x = noise * np.log(np.where(ratio > 0, ratio, 1.0)) + 0.5 / noise  # loss <= t iff sample <= noise * x
        return np.where(ratio > 0, (1 - rate) * ndtr(x) + rate * ndtr(x - 1 / noise), 0.0)


@dataclass(frozen=True)
class AdditionLoss:
    """Privacy loss of N(0, z²) against (1 - q) N(0, z²) + q N(1, z²), under the former.

    The loss at x is -log(1 - q + q e^((2x - 1) / 2z²)), which falls in x and stays below -log(1 - q).
    """

    sample_rate: float
    noise_multiplier: float

    def cdf(self, t: Floats) -> Floats:
        """See `Loss.cdf`."""
        rate, noise = self.sample_rate, self.noise_multiplier
        ratio = (np.exp(-t) - (1 - rate)) / rate
        x = noise * np.log(np.where(ratio > 0, ratio, 1.0)) + 0.5 / noise  # loss <= t iff noise * x <= sample
        return np.where(ratio > 0, np.exp(log_ndtr(-x)), 1.0)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where losses are looked at, and what that costs: from -`half` to `half` + 1 steps of `width`.

    Args:
        width, half: In nats; steps.
        error: What its coarseness adds to epsilon.
        delta_error: What it takes from delta.
    """

    width: float
    half: int
    error: float
    delta_error: float

    @property
    def size(self) -> int:
        """Points; even."""
        return 2 * self.half + 2

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last point."""
        return -self.half * self.width, (self.half + 1) * self.width

    @property
    def points(self) -> Floats:
        """float64 (size,)."""
        return np.linspace(*self.ends, self.size)


@dataclass(frozen=True, kw_only=True)
class PrvBound:
    """What the composition gives.

    Args:
        epsilon: Upper bound, >= 0.
        error: What the grid's coarseness added to it; it grows with the square root of the steps.
    """

    epsilon: float
    error: float


class LossComposer(Protocol):
    """Composes losses, each so many times, on a grid."""

    def __call__(self, losses: Sequence[Loss], steps: Sequence[int], grid: Grid, delta: float) -> float:
        """The upper bound of epsilon at `delta`."""
        ...


def prv_epsilon(removals: Sequence[Removal], delta: float, *, rough: float, compose: LossComposer) -> PrvBound:
    """Epsilon at `delta` of the composition of `removals`, both directions.

    Args:
        removals: What is composed; groups enter through the coarse pair of `groups`.
        delta: At least `SMALLEST_DELTA`.
        rough: Any upper bound of the result; the error is made small against it.
        compose: Who composes, as `compose_losses` does.

    Raises:
        CannotCompose: the discretisation fails; use the Rényi bound.
    """
    if delta < SMALLEST_DELTA:
        raise CannotCompose(f"delta {delta} is below {SMALLEST_DELTA}")
    pairs = [removal.coarse for removal in removals]
    steps = [removal.steps for removal in removals]
    with np.errstate(all="ignore"):
        try:
            grid = grid_for(removals, delta, rough=rough)
            directions: list[list[Loss]] = [[RemovalLoss(rate, noise) for noise, rate in pairs]]
            if any(rate < 1 for _, rate in pairs):  # without sampling the pair is symmetric
                directions.append([AdditionLoss(rate, noise) for noise, rate in pairs])
            spent = [compose(direction, steps, grid, delta) for direction in directions]
        except (RuntimeError, ValueError, OverflowError, ZeroDivisionError, MemoryError) as reason:
            raise CannotCompose(str(reason)) from None
    largest = max(spent)
    if not math.isfinite(largest):
        raise CannotCompose(f"the result is {largest}")
    return PrvBound(epsilon=max(0.0, largest), error=grid.error)


def grid_for(removals: Sequence[Removal], delta: float, *, rough: float) -> Grid:
    """A grid for the composition of `removals`.

    Theorem 5.5: of k compositions on a grid of width h, epsilon is off by at most h sqrt(k / 2 log(12 / delta_error)).

    Raises:
        CannotCompose: it would be too coarse or too long.
    """
    steps, delta_error = sum(removal.steps for removal in removals), delta / 1000
    half_width = _half_width(removals, delta_error)
    per_error = math.sqrt(steps * math.log(12 / delta_error) / 2)
    error = max(min(0.01, rough * _RELATIVE_ERROR), 2 * half_width * per_error / _POINTS)
    if not error < 0.5:
        raise CannotCompose(f"the grid would need an error of {error} in epsilon")
    width = error / per_error
    half = math.ceil(half_width / width)
    # A grid that reaches further is as good, and one of a length with small factors is transformed quickly.
    return Grid(width=width, half=next_fast_len(half + 1, real=True) - 1, error=error, delta_error=delta_error)


def _half_width(removals: Sequence[Removal], delta_error: float) -> float:
    """How far the grid must reach (Remark 5.6), as Opacus' `compute_safe_domain_size` has it.

    Rényi curves bound both directions (see `rdp`).
    """
    single = delta_error / (8 * sum(removal.steps for removal in removals))
    widest = max(rdp.rdp_epsilon([replace(removal, steps=1)], single) for removal in removals)
    half_width = max(widest, rdp.rdp_epsilon(removals, delta_error / 4), 0.01) + 3
    if not math.isfinite(half_width):
        raise CannotCompose("the privacy loss has no bound that a grid could reach")
    return half_width


def discretised(loss: Loss, grid: Grid) -> tuple[Floats, float]:
    """A loss on a grid, given that it lies within it.

    Returns:
        Masses of the points, float64 (size,), and how far all points are to be shifted so that the mean is that of the loss.

    Raises:
        RuntimeError: the grid is too coarse for this loss.
    """
    points, (low, high) = grid.points, grid.ends
    edges = np.append(points - grid.width / 2, points[-1] + grid.width / 2)
    below, until = loss.cdf(np.array([low, high]))
    reached = (loss.cdf(edges) - below) / (until - below)
    masses = np.diff(np.where(edges < low, 0.0, np.where(edges < high, reached, 1.0)))
    shift = _mean(loss, low, high) - float(points @ masses)
    if not abs(shift) < grid.width / 2:
        raise RuntimeError("the mean of the grid differs from that of the loss")
    return masses, shift


def compose_losses(losses: Sequence[Loss], steps: Sequence[int], grid: Grid, delta: float) -> float:
    """The upper bound of epsilon at `delta` of losses that are composed `steps` times each.

    Raises:
        RuntimeError: no point of the grid has so small a delta.
    """
    spectrum, shift = np.ones(grid.size // 2 + 1, np.complex128), 0.0
    for loss, count in zip(losses, steps, strict=True):
        masses, off = discretised(loss, grid)
        spectrum *= rfft(masses) ** count
        shift += count * off
    # Indices of all that is summed add up, each counted from the first point; the sum is counted from it once.
    turned = -(sum(steps) - 1) * grid.half % grid.size
    return _upper(np.roll(irfft(spectrum, n=grid.size), turned), grid.points + shift, delta - grid.delta_error) + grid.error


def _upper(masses: Floats, points: Floats, delta: float) -> float:
    """The epsilon at which sum over t > epsilon of mass (1 - e^(epsilon - t)) is `delta`."""
    above = masses[::-1].cumsum()[::-1]
    weighted = (masses * np.exp(-points))[::-1].cumsum()[::-1]
    first = int(np.searchsorted(np.exp(points) * weighted - above, -delta))
    if not 0 < first < len(points):
        raise RuntimeError("epsilon is not on the grid")
    return math.log((above[first] - delta) / weighted[first])


def _mean(loss: Loss, low: float, high: float) -> float:
    """Mean of a loss of either direction, given that it lies between `low` and `high`.

    It is integrated over the mechanism's output x, where all is smooth: Gauss-Legendre on pieces of a fraction of the noise, and
    finer around the bend of the loss. Opacus integrates P(loss <= t) adaptively, point by point, for half of the time of a
    composition.
    """
    rate, noise = loss.sample_rate, loss.noise_multiplier
    added = isinstance(loss, AdditionLoss)
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
