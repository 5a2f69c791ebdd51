"""The cosine of a canary's own vector with what was released: the statistic of Andrew et al. 2023 for federated runs.

Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar 2023, "One-shot empirical privacy estimation for federated learning",
Algorithm 1: the cosines of random canaries that are out are N(0, 1/d) in d dimensions; those of canaries that are in are taken to
be a Gaussian, too, and epsilon is that of telling the two apart. It is an estimate and no bound: nothing is refuted by it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.stats import norm  # type: ignore[import-untyped]

from simulations.attack.one_run import LARGEST, Floats

_POINTS = 200_001
_REACH = 12.0


def cosines(vectors: Floats, released: Floats) -> Floats:
    """Cosine of each canary's vector, float64 (m, d), with the release (d,); 0 where one of them is nothing."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(released)
    found: Floats = np.divide(vectors @ released, lengths, out=np.zeros(len(vectors)), where=lengths > 0)
    return found


def cosine_epsilon(inside: Floats, *, dimension: int, delta: float) -> float:
    """Epsilon at `delta` of N(mean, deviation^2), fitted to the cosines of canaries that are in, against N(0, 1/d)."""
    return epsilon_between(float(inside.mean()), float(inside.std(ddof=1)), 1 / math.sqrt(dimension), delta)


def epsilon_between(mean: float, deviation: float, null: float, delta: float) -> float:
    """Epsilon at `delta` between N(mean, deviation^2) and N(0, null^2), the larger of the two directions.

    >>> round(epsilon_between(1.0, 1.0, 1.0, 1e-5), 2)  # as a Gaussian mechanism of sensitivity 1 and noise 1
    4.38
    """
    low = min(mean - _REACH * deviation, -_REACH * null)
    high = max(mean + _REACH * deviation, _REACH * null)
    x = np.linspace(low, high, _POINTS)
    here, there = norm.logpdf(x, mean, deviation), norm.logpdf(x, 0.0, null)

    def excess(epsilon: float) -> float:
        forth = np.trapezoid(np.maximum(0.0, np.exp(here) - np.exp(np.minimum(there + epsilon, 700.0))), x)
        back = np.trapezoid(np.maximum(0.0, np.exp(there) - np.exp(np.minimum(here + epsilon, 700.0))), x)
        return float(max(forth, back)) - delta

    if excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST) > 0:
        return LARGEST
    return float(brentq(excess, 0.0, LARGEST, xtol=1e-6))
