"""The private mechanisms: sampler, clipping bound, noise and accounting event as one object.

Because they are one object they cannot disagree: the sensitivity is the clip, the noise is its multiple, the batch is
the Poisson sample that the accountant assumes, and the divisor is declared. See DESIGN, "Guarantees are built".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.noise import NoiseSource
from client.sending import sent
from shared.errors import PrivacyError
from shared.privacy.releases import Release, ReleaseKind


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A clipping bound that follows a quantile of the gradients' norms (Andrew et al. 2021, "Differentially private
    learning with adaptive clipping").

    Args:
        target: The share of users whose gradient should not be cut.
        rate: Step of the geometric update, C <- C exp(-rate (share - target)).
        noise: Standard deviation of the noise on the count of uncut users; the paper's is a twentieth of the batch.
    """

    target: float
    rate: float
    noise: float

    def __post_init__(self) -> None:
        if not (0 < self.target < 1 and self.rate > 0 and self.noise > 0):
            raise PrivacyError(f"a clipping quantile with target={self.target}, rate={self.rate}, noise={self.noise}")


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """DP-SGD's step on users (Abadi et al. 2016), add-or-remove adjacency, one user one example.

    Args:
        users: Declared number of users; public. Never the counted one.
        sample_rate: Probability that a user is in a step's batch.
        clip: L2 bound of one user's joint gradient; the sensitivity of the sum. Infinite only without privacy.
        noise_multiplier: Noise standard deviation over the sensitivity of one step's whole release; 0 turns privacy off.
        group_size: Examples that one user may touch (`client/friends.py`).
        quantile: Adapts `clip` from step to step; None keeps it.

    Guarantees:
        Each `privatise` of a `sample` (with `follow` of the same sample, if there is a quantile) is one step of the
        `release` that this object describes, for any gradients.
    """

    users: int
    sample_rate: float
    clip: float
    noise_multiplier: float
    group_size: int = 1
    quantile: Quantile | None = None

    def __post_init__(self) -> None:
        if self.users < 1 or not 0 < self.sample_rate <= 1 or self.group_size < 1:
            raise PrivacyError(
                f"a mechanism with users={self.users}, sample_rate={self.sample_rate}, group_size={self.group_size}"
            )
        if self.noise_multiplier < 0 or not math.isfinite(self.noise_multiplier) or not self.clip > 0:
            raise PrivacyError(f"a mechanism with noise_multiplier={self.noise_multiplier}, clip={self.clip}")
        if self.private and not math.isfinite(self.clip):
            raise PrivacyError("noise without a clipping bound guarantees nothing", do="set training.clip")
        if self.private and self.quantile is not None and 2 * self.quantile.noise <= self.noise_multiplier:
            raise PrivacyError(
                f"the count of uncut gradients, with noise {self.quantile.noise:.3g}, would spend more than the whole step may "
                f"(noise multiplier {self.noise_multiplier:.3g})",
                where="training.clipping = adaptive",
                do="a larger sample rate, or training.clipping = fixed",
            )

    @property
    def private(self) -> bool:
        """False when privacy was turned off."""
        return self.noise_multiplier > 0

    @property
    def gradient_noise(self) -> float:
        """Noise standard deviation of the sum of gradients over `clip`.

        With a quantile, a step releases the sum and the count of uncut users, both of the same sample. A user moves the
        sum by at most C and the centred count (plus or minus a half) by a half, so the two together are one Gaussian
        mechanism of multiplier z with z^-2 = gradient_noise^-2 + (2 quantile.noise)^-2 (Andrew et al. 2021, Theorem 1).
        """
        if self.quantile is None or not self.private:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 - (2 * self.quantile.noise) ** -2) ** -0.5)

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
        if not sums:
            return {}
        # All in one piece: on a GPU every call has a price.
        whole = torch.cat([total.reshape(-1) for total in sums.values()])
        if self.private:
            whole.add_(sent(random.normal(whole.shape), whole.device), alpha=self.gradient_noise * self.clip)
        parts = torch.split(whole.div_(self.expected_batch), [total.numel() for total in sums.values()])
        return {name: part.view(total.shape) for (name, total), part in zip(sums.items(), parts, strict=True)}

    def follow(self, uncut: float | Tensor, sampled: int, random: NoiseSource) -> Mechanism:
        """The mechanism of the next step, its bound moved towards the quantile.

        Args:
            uncut: How many of the sampled users had a gradient no longer than `clip`. Read only for a quantile: on a GPU
                that means to wait for it.
            sampled: Size of the sample. Both are private: only their noised difference is used.
        """
        if self.quantile is None or not self.private:
            return self
        # Each sampled user adds +1/2 or -1/2, each other nothing: half the sensitivity of a count.
        centred = float(uncut) - sampled / 2 + self.quantile.noise * float(random.normal((1,))[0])
        share = min(1.0, max(0.0, centred / self.expected_batch + 0.5))
        return replace(self, clip=self.clip * math.exp(-self.quantile.rate * (share - self.quantile.target)))


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
