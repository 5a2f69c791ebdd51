"""Rényi accounting by Opacus: always an upper bound, quick, at any delta; some per cent loose.

Mironov, Talwar and Zhang 2019, "Rényi differential privacy of the sampled Gaussian mechanism"
(Theorems 4 and 5: the removal direction is the larger at every order, so one curve bounds both);
conversion to (epsilon, delta) by Balle et al. 2020, "Hypothesis testing interpretations and Rényi
differential privacy", Theorem 21. Groups enter through the coarse pair of `groups`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.privacy.groups import Removal

# Small orders serve epsilons of hundreds, large ones epsilons of hundredths. Above 11 they are whole
# numbers: Opacus' series for fractional orders loses digits there. 1000 is where its binomials end.
ORDERS: tuple[float, ...] = (
    *(1 + 2.0**-k for k in range(10, 3, -1)),
    *(1 + k / 10 for k in range(1, 100)),
    *range(12, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1000),
)


def rdp_epsilon(removals: Sequence[Removal], delta: float) -> float:
    """An epsilon (>= 0, possibly infinite) at `delta` of the composition of `removals`."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = np.zeros(len(ORDERS))
    for removal in removals:
        total = total + removal.steps * curve(*removal.coarse)
    usable = np.isfinite(total)
    if not usable.any() or delta <= 0:
        return math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "the optimal order is the largest": still a bound
        spent, _ = get_privacy_spent(orders=list(np.array(ORDERS)[usable]), rdp=list(total[usable]), delta=delta)
    return max(0.0, float(spent))


@lru_cache(maxsize=512)
def curve(noise_multiplier: float, sample_rate: float) -> NDArray[np.float64]:
    """RDP of one step at `ORDERS`, float64 (orders,); infinite where Opacus cannot compute it."""
    from opacus.accountants.analysis.rdp import compute_rdp

    values = np.full(len(ORDERS), math.inf)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for index, order in enumerate(ORDERS):
            try:
                value = float(compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=float(order)))
            except (ValueError, OverflowError, ZeroDivisionError):
                continue  # an alternating series that lost its digits; another order gives the bound
            # Cancellation may also end slightly below zero, which no divergence is.
            values[index] = value if value > 0 else math.inf
    values.setflags(write=False)
    return values
