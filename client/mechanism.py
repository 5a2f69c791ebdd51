"""The private mechanisms: sampler, clipping bound, noise and accounting event as one object.

Because they are one object they cannot disagree: the sensitivity is the clip, the noise is its multiple, the batch is
the Poisson sample that the accountant assumes, and the divisor is declared. See DESIGN, "Guarantees are built".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.noise import NoiseSource
from shared.errors import PrivacyError
from shared.privacy.releases import Release, ReleaseKind


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """DP-SGD's step on users (Abadi et al. 2016), add-or-remove adjacency, one user one example.

    Args:
        users: Declared number of users; public. Never the counted one.
        sample_rate: Probability that a user is in a step's batch.
        clip: L2 bound of one user's joint gradient; the sensitivity of the sum. Infinite only without privacy.
        noise_multiplier: Noise standard deviation over `clip`; 0 turns privacy off.
        group_size: Examples that one user may touch (`client/friends.py`).

    Guarantees:
        Each `privatise` of a `sample` is one step of the `release` that this object describes, for any gradients.
    """

    users: int
    sample_rate: float
    clip: float
    noise_multiplier: float
    group_size: int = 1

    def __post_init__(self) -> None:
        if self.users < 1 or not 0 < self.sample_rate <= 1 or self.group_size < 1:
            raise PrivacyError(
                f"a mechanism with users={self.users}, sample_rate={self.sample_rate}, group_size={self.group_size}"
            )
        if self.noise_multiplier < 0 or not math.isfinite(self.noise_multiplier) or not self.clip > 0:
            raise PrivacyError(f"a mechanism with noise_multiplier={self.noise_multiplier}, clip={self.clip}")
        if self.private and not math.isfinite(self.clip):
            raise PrivacyError("noise without a clipping bound guarantees nothing", do="set training.clip")

    @property
    def private(self) -> bool:
        """False when privacy was turned off."""
        return self.noise_multiplier > 0

    @property
    def expected_batch(self) -> float:
        """Declared divisor of the sum; the real batch size would leak (opacus#571)."""
        return self.sample_rate * self.users

    def release(self, steps: int) -> Release:
        """The accounting event of so many steps."""
        return Release(
            kind=ReleaseKind.TRAIN,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=steps,
            group_size=self.group_size,
        )

    def sample(self, present: int, random: NoiseSource) -> NDArray[np.int64]:
        """A Poisson sample of the users 0 ... present - 1; its size is random and may be 0."""
        return np.flatnonzero(random.bernoulli(present, self.sample_rate))

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Factor min(1, clip / norm) of each user's gradient, (n,); a gradient that is not finite is dropped.

        A NaN gradient must not reach the sum: it would poison the release and, with it, tell of one user.
        """
        weights = torch.ones_like(squared_norms)
        if self.private:
            weights = (self.clip / squared_norms.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        return torch.where(torch.isfinite(squared_norms), weights, torch.zeros_like(weights))

    def privatise(self, sums: Mapping[str, Tensor], random: NoiseSource) -> dict[str, Tensor]:
        """The noised mean gradient from the sum of clipped gradients: (sum + z C N(0, I)) / expected batch."""
        noised = {}
        for name, total in sums.items():
            value = total
            if self.private:
                noise = random.normal(tuple(total.shape)).to(total.device)
                value = total + noise * (self.noise_multiplier * self.clip)
            noised[name] = value / self.expected_batch
        return noised


@dataclass(frozen=True, kw_only=True)
class CountMechanism:
    """One noised vector of counts to which each user contributes a vector of L2 norm at most 1.

    Args:
        kind: What is released.
        noise_multiplier: Noise standard deviation; 0 turns privacy off.
        group_size: Contributions that one user may touch.
    """

    kind: ReleaseKind
    noise_multiplier: float
    group_size: int = 1

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0 or not math.isfinite(self.noise_multiplier) or self.group_size < 1:
            raise PrivacyError(f"a mechanism with noise_multiplier={self.noise_multiplier}, group_size={self.group_size}")

    def release(self) -> Release:
        """The accounting event."""
        return Release(kind=self.kind, noise_multiplier=self.noise_multiplier, group_size=self.group_size)

    def privatise(self, contributions: NDArray[np.float64], random: NoiseSource) -> NDArray[np.float64]:
        """The sum over users plus noise.

        Args:
            contributions: float64 (users, width), checked: no row may exceed norm 1.
        """
        norms = np.linalg.norm(contributions, axis=1)
        if not (norms <= 1 + 1e-9).all():  # said so that NaN is refused, too
            raise PrivacyError(f"a user's contribution has norm {norms.max():.3f}, above its bound 1")
        return self.noised(contributions.sum(0), random)

    def noised(self, total: NDArray[np.float64], random: NoiseSource) -> NDArray[np.float64]:
        """Add the noise to a sum whose contributions were bounded by the caller."""
        if self.noise_multiplier == 0:
            return total
        return total + self.noise_multiplier * random.normal(total.shape).double().numpy()
