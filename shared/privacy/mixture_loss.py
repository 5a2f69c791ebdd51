"""The privacy loss of a mixture of Gaussians, for dp-accounting's discretisation, inverted at all points at once.

dp-accounting inverts it by a recursion in Python that takes most of the time of an account with groups: seconds a composition,
and a plan looks at twenty. The answer is the same, to the multiple of its precision.
"""

from __future__ import annotations

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as distributions
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, MixtureGaussianPrivacyLoss
from numpy.typing import NDArray

from shared.privacy.gaussian_loss import distribution_of

Floats = NDArray[np.float64]


class _MixtureLoss(MixtureGaussianPrivacyLoss):  # type: ignore[misc]
    def losses(self, x: Floats) -> Floats:
        """The privacy loss at each of the points, (n,); it falls with x."""
        sign = 1.0 if self.adjacency_type == AdjacencyType.ADD else -1.0
        total = np.full(len(x), -np.inf)
        for sensitivity, constant in zip(self.sensitivities, self._precompute_privacy_loss_constants, strict=True):
            total = np.logaddexp(total, constant + sign * sensitivity / self._variance * x)
        return -sign * total

    def _inverse_privacy_losses_with_range(
        self, privacy_losses: Floats, bounds: tuple[float, float], precision: float = 1e-6
    ) -> Floats:
        """For each loss the smallest multiple of `precision` at which the loss is at most that; by bisection on the multiples."""
        low = np.full(len(privacy_losses), int(np.floor(bounds[0] / precision)) - 1)
        high = np.full(len(privacy_losses), int(np.ceil(bounds[1] / precision)))
        while (high - low > 1).any():
            middle = (low + high) // 2
            enough = self.losses(middle * precision) <= privacy_losses
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return high * precision


def mixture_loss(
    noise_multiplier: float, sensitivities: list[int], weights: list[float], *, width: float
) -> distributions.PrivacyLossDistribution:
    """The discretised loss of one step, pessimistic, in both directions.

    Args:
        sensitivities, weights: Of the mixture; the weights sum to 1.
        width: Of the grid of losses, in nats.
    """
    losses = [
        _MixtureLoss(noise_multiplier, sensitivities, weights, adjacency_type=direction)
        for direction in (AdjacencyType.REMOVE, AdjacencyType.ADD)
    ]
    return distribution_of(losses, width=width)
