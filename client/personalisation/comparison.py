"""Whether a platform's own model is better than the global one: a noised comparison over its held-out users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.privacy.bounded_sum import BoundedSum, of_contributions
from client.privacy.mechanism import CountMechanism
from client.privacy.noise_sources import NoiseSource

CONFIDENCE = 2.0
"""Standard deviations of its noise by which a comparison must be won: a model that is no better wins with probability 2.3 %."""


def gains(shared: NDArray[np.float64], own: NDArray[np.float64]) -> BoundedSum:
    """How much better the platform's own model is, summed over users.

    Args:
        shared, own: float64 (users,). NDCG@10 of each held-out user under the global model and under the own one, in [0, 1].
    """
    return of_contributions((own - shared)[:, None])


def wins(gained: BoundedSum, mechanism: CountMechanism, random: NoiseSource) -> bool:
    """Whether the platform's own model is better, by a noised comparison; the caller has charged for it.

    Guarantees:
        One user moves the sum of differences by at most 1. A model that is no better on these users wins with probability
        at most 2.3 %, whatever their number: the noise would have to exceed `CONFIDENCE` standard deviations.
    """
    noise = mechanism.point.noise if mechanism.private else 0.0
    return float(mechanism.privatise(gained, random)[0]) > CONFIDENCE * noise
