"""Rényi accounting: always an upper bound, quick, at any delta; some per cent loose.

Mironov, Talwar and Zhang 2019, "Rényi differential privacy of the sampled Gaussian mechanism"
(Theorems 4 and 5: the removal direction is the larger at every order, so one curve bounds both);
conversion to (epsilon, delta) by Balle et al. 2020, "Hypothesis testing interpretations and Rényi
differential privacy", Theorem 21. Groups enter through the coarse pair of `groups`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import binom, log_ndtr  # type: ignore[import-untyped]

from shared.privacy.groups import Removal

# Small orders serve epsilons of hundreds, large ones epsilons of hundredths. Above 11 they are whole
# numbers: Opacus' series for fractional orders loses digits there. 1000 is where its binomials end.
ORDERS: tuple[float, ...] = (
    *(1 + 2.0**-k for k in range(10, 3, -1)),
    *(1 + k / 10 for k in range(1, 100)),
    *range(12, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1000),
)

_END = -30.0
"""Logarithm of the term at which a series ends; 1e-13."""
_BLOCK, _MOST_TERMS = 32, 200_000

Floats = NDArray[np.float64]


def rdp_epsilon(removals: Sequence[Removal], delta: float) -> float:
    """An epsilon (>= 0, possibly infinite) at `delta` of the composition of `removals`."""
    orders, total = composed_curve(removals)
    if not len(orders) or delta <= 0:
        return math.inf
    spent = total - (math.log(delta) + np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(spent.min()))


def composed_curve(removals: Sequence[Removal]) -> tuple[Floats, Floats]:
    """Orders, and the Rényi divergence of the composition at each, where it is finite."""
    total = np.zeros(len(ORDERS))
    for removal in removals:
        total = total + removal.steps * curve(*removal.coarse)
    usable = np.isfinite(total)
    return np.array(ORDERS)[usable], total[usable]


@lru_cache(maxsize=512)
def curve(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """RDP of one step at `ORDERS`, float64 (orders,); infinite where the series loses its digits.

    Mironov et al.'s series as Opacus sums them, term by term and with the same end, but at all orders at once: Opacus' loops in
    Python are most of the time of a plan.
    """
    orders = np.array(ORDERS)
    if sample_rate == 1:
        values = orders / (2 * noise_multiplier**2)
    else:
        whole = orders == np.floor(orders)
        logs = np.empty(len(orders))
        with np.errstate(all="ignore"):
            logs[whole] = [_whole_moment(int(order), sample_rate, noise_multiplier) for order in orders[whole]]
            logs[~whole] = _fractional_moments(orders[~whole], sample_rate, noise_multiplier)
            values = logs / (orders - 1)
        # Cancellation may also end slightly below zero, which no divergence is.
        values = np.where(values > 0, values, math.inf)
    values.setflags(write=False)
    return values


def _whole_moment(order: int, rate: float, noise: float) -> float:
    """log E[(the ratio of the densities) ^ order] of one step (section 3.3, an order that is a whole number)."""
    i = np.arange(order + 1.0)
    terms = np.log(binom(order, i)) + i * math.log(rate) + (order - i) * math.log1p(-rate) + i * (i - 1) / (2 * noise**2)
    most = float(terms.max())
    return most + math.log(float(np.exp(terms - most).sum()))


def _fractional_moments(orders: Floats, rate: float, noise: float) -> Floats:
    """The same at orders that are none, (orders,); NaN where a partial sum is below zero, or no end is in sight.

    The moment is an integral in two parts, which meet at z0; each is an alternating series.
    """
    meet = noise**2 * math.log(1 / rate - 1) + 0.5
    found = np.full(len(orders), math.nan)
    left = np.arange(len(orders))  # that have not come to their end
    sums, scale = np.zeros((2, len(orders))), np.full((2, len(orders)), -np.inf)
    start, stop = 0, _BLOCK
    while len(left) and start < _MOST_TERMS:
        i, order = np.arange(start, stop, dtype=np.float64), orders[left, None]
        j, binomial = order - i, binom(order, i)
        first = i * math.log(rate) + j * math.log1p(-rate) + i * (i - 1) / (2 * noise**2) + log_ndtr((meet - i) / noise)
        last = j * math.log(rate) + i * math.log1p(-rate) + j * (j - 1) / (2 * noise**2) + log_ndtr((j - meet) / noise)
        terms = np.log(np.abs(binomial)) + np.stack([first, last])
        # The term that ends a series is still a part of it; what comes after is not.
        small = terms.max(axis=0) < _END
        terms[:, np.cumsum(small, axis=1) - small > 0] = -np.inf
        larger = np.maximum(scale, terms.max(axis=2))
        carried = np.where(np.isfinite(scale), sums * np.exp(scale - larger), 0.0)
        partial = carried[:, :, None] + np.cumsum(np.sign(binomial) * np.exp(terms - larger[:, :, None]), axis=2)
        whole = (partial >= 0).all(axis=(0, 2))
        sums, scale = partial[:, :, -1], larger
        done = small.any(axis=1)
        found[left[done & whole]] = np.logaddexp(*(scale + np.log(sums)))[done & whole]
        keep = ~done & whole
        left, sums, scale = left[keep], sums[:, keep], scale[:, keep]
        start, stop = stop, stop + min(2 * (stop - start), 4096)
    return found
