"""The private mechanisms: sampler, clipping bound, noise and accounting event as one object.

Because they are one object they cannot disagree: the sensitivity is the clip, the noise is its multiple, the batch is
the Poisson sample that the accountant assumes, and the divisor is declared.

Every mechanism releases integers: a `BoundedSum` is scaled, rounded by chance to whole steps and noised with a discrete Gaussian
(`shared/secagg/fixed_point.py`, `client/privacy/discrete_gaussian.py`). Floats come after the noise, as multiples of the grid.
Noise in floating point tells neighbouring data sets apart by its low bits (Mironov 2012), and is rounded away where values are
small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.privacy.discrete_gaussian import local_noise, noise_share
from client.privacy.noise_sources import NoiseSource
from shared.base.errors import PrivacyError
from shared.base.settings import CLIPS
from shared.privacy.integers import FINE
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.fixed_point import FixedPoint, rounded

if TYPE_CHECKING:  # plans are made without torch
    from torch import Tensor

    from client.privacy.bounded_sum import BoundedSum


def noised_steps(vector: NDArray[np.float64], point: FixedPoint, random: NoiseSource) -> NDArray[np.int64]:
    """A sum over users in whole steps of the grid, with this platform's share of the noise; int64 (dimension,)."""
    return point.encode(vector, random) + noise_share(point, random)


def noised_local(vector: NDArray[np.float64], point: FixedPoint, random: NoiseSource) -> NDArray[np.float64]:
    """What of a sum stays on the platform while the rest is masked: on a finer grid, with all of the noise; float64 (n,)."""
    steps = FINE * point.scale
    noised: NDArray[np.float64] = (rounded(vector * steps, random) + local_noise(point, len(vector), random)) / steps
    return noised


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """A clipping bound that follows a quantile of the gradients' norms (Andrew et al. 2021, "Differentially private
    learning with adaptive clipping").

    Args:
        target: The share of users whose gradient should not be cut.
        rate: Step of the geometric update, C <- C exp(-rate (share - target)).
        noise: Standard deviation of the noise on the count of uncut users; the paper's is a twentieth of the batch.
        least, most: Between which the bound stays.
    """

    target: float
    rate: float
    noise: float
    least: float = CLIPS[0]
    most: float = CLIPS[1]

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
        dimension: Coordinates of the gradient.
        group_size: Examples that one user may touch (`client/examples/friends.py`).
        quantile: Adapts `clip` from step to step; None keeps it.

    Guarantees:
        Each `privatise` of the bounded sum over a `sample` is one step of the `release` that this object describes, for any
        gradients.

    | given | result |
    |---|---|
    | 0 users, a rate of 0 or above 1, dimension 0, NaN | `PrivacyError` |
    | noise and an infinite `clip` | `PrivacyError` |
    | a noise multiplier of 0 | not private: the exact mean is released |
    | nobody in the sample | released like any other, with noise |
    | a gradient that is not finite | weight 0: it is that user's alone |
    | a sum of another bound or dimension | `PrivacyError` |
    """

    users: int
    sample_rate: float
    clip: float
    noise_multiplier: float
    dimension: int
    group_size: int = 1
    quantile: Quantile | None = None

    def __post_init__(self) -> None:
        if self.users < 1 or not 0 < self.sample_rate <= 1 or self.group_size < 1 or self.dimension < 1:
            raise PrivacyError(
                f"a mechanism with users={self.users}, sample_rate={self.sample_rate}, group_size={self.group_size}, "
                f"dimension={self.dimension}"
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
    def vote(self) -> float:
        """Scale v of a user's vote on the clip (plus or minus a half), released with the gradient; 0 without a quantile.

        A user's vector is the gradient, of norm at most C, and the vote times v: together at most sqrt(C^2 + v^2 / 4) long, and
        every coordinate gets the same noise N = z sqrt(C^2 + v^2 / 4). The vote's own noise is N / v = quantile.noise, which
        gives v^2 = z^2 C^2 / (quantile.noise^2 - z^2 / 4) (Andrew et al. 2021, Theorem 1, with one noise for both).
        """
        if self.quantile is None or not self.private:
            return 0.0
        return self.noise_multiplier * self.clip / math.sqrt(self.quantile.noise**2 - self.noise_multiplier**2 / 4)

    @cached_property
    def point(self) -> FixedPoint:
        """The grid, and the noise on it."""
        clip = math.hypot(self.clip, self.vote / 2)
        return FixedPoint.own(dimension=self.dimension + bool(self.vote), clip=clip, noise_multiplier=self.noise_multiplier)

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
            integers=self.point.integers if self.private else None,
        )

    def sample(self, present: int, random: NoiseSource) -> NDArray[np.int64]:
        """A Poisson sample of the users 0 ... present - 1; its size is random and may be 0."""
        return np.flatnonzero(random.bernoulli(present, self.sample_rate))

    def weights(self, squared_norms: Tensor) -> Tensor:
        """Factor min(1, clip / norm) of each user's gradient, (n,); a gradient that is not finite is dropped.

        A NaN gradient must not reach the sum: it would poison the release and, with it, tell of one user.
        """
        weights = squared_norms.new_ones(squared_norms.shape)
        if self.private:
            weights = (self.clip / squared_norms.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        return weights.where(squared_norms.isfinite(), 0.0)

    def privatise(self, total: BoundedSum, random: NoiseSource) -> tuple[dict[str, Tensor], Mechanism]:
        """The noised mean gradient, name -> float32, and the mechanism of the next step.

        Args:
            total: Of a `sample`. Only its noised sum is used, never the size of the sample.

        Raises:
            PrivacyError: the sum is of another bound or dimension: a fault of the program.
        """
        if total.bound != self.clip or total.dimension != self.dimension:
            raise PrivacyError(
                f"a sum of bound {total.bound:g} over {total.dimension} coordinates for a mechanism of "
                f"clip {self.clip:g} and {self.dimension}"
            )
        if not self.private:
            return {name: (part / self.expected_batch).float() for name, part in total.parts.items()}, self
        from client.compute.device_transfer import sent

        # In one piece: a GPU is waited for once.
        released = _noised(total.vector(vote=self.vote), self.point, random)
        device = next(iter(total.parts.values())).device
        # All in one piece: on a GPU every copy has a price.
        whole = sent((released[: self.dimension] / self.expected_batch).astype(np.float32), device)
        parts = whole.split([part.numel() for part in total.parts.values()])  # type: ignore[no-untyped-call]
        gradient = {name: part.view(old.shape) for (name, old), part in zip(total.parts.items(), parts, strict=True)}
        return gradient, self._following(float(released[-1]) / self.vote) if self.vote else self

    def _following(self, votes: float) -> Mechanism:
        """The mechanism of the next step, its bound moved towards the quantile; `votes` are noised."""
        assert self.quantile is not None
        share = min(1.0, max(0.0, votes / self.expected_batch + 0.5))
        # Within what may be asked for, wherever the noise leads.
        moved = self.clip * math.exp(-self.quantile.rate * (share - self.quantile.target))
        clip = min(self.quantile.most, max(self.quantile.least, moved))
        return replace(self, clip=clip)


@dataclass(frozen=True, kw_only=True)
class CountMechanism:
    """One noised sum to which each user of a Poisson sample contributes a vector of L2 norm at most 1.

    Args:
        kind: What is released.
        noise_multiplier: Noise standard deviation; 0 turns privacy off.
        dimension: Coordinates of the vector.
        group_size: Contributions that one user may touch.
        sample_rate: Probability that a contribution is in the sum.

    Guarantees:
        One `privatise` of the bounded sum over a `sample` is the `release` that this object describes.
    """

    kind: ReleaseKind
    noise_multiplier: float
    dimension: int
    group_size: int = 1
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_multiplier < 0 or not math.isfinite(self.noise_multiplier) or self.group_size < 1 or self.dimension < 1:
            raise PrivacyError(
                f"a mechanism with noise_multiplier={self.noise_multiplier}, group_size={self.group_size}, "
                f"dimension={self.dimension}"
            )
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"a mechanism with sample_rate={self.sample_rate}")

    @property
    def private(self) -> bool:
        """False when privacy was turned off."""
        return self.noise_multiplier > 0

    @cached_property
    def point(self) -> FixedPoint:
        """The grid, and the noise on it."""
        return FixedPoint.own(dimension=self.dimension, clip=1.0, noise_multiplier=self.noise_multiplier)

    def release(self) -> Release:
        """The accounting event."""
        return Release(
            kind=self.kind,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            group_size=self.group_size,
            integers=self.point.integers if self.private else None,
        )

    def sample(self, present: int, random: NoiseSource) -> NDArray[np.int64]:
        """A Poisson sample of the contributions 0 ... present - 1; all of them, and no draw, at a rate of 1."""
        if self.sample_rate == 1:
            return np.arange(present)
        return np.flatnonzero(random.bernoulli(present, self.sample_rate))

    def privatise(self, total: BoundedSum, random: NoiseSource) -> NDArray[np.float64]:
        """The noised sum, float64 (dimension,).

        Raises:
            PrivacyError: the sum is of another bound or dimension: a fault of the program.
        """
        if not total.bound <= 1 or total.dimension != self.dimension:
            raise PrivacyError(f"a sum of bound {total.bound:g} over {total.dimension} coordinates, expected {self.dimension}")
        if not self.private:
            return total.vector()
        return _noised(total.vector(), self.point, random)


def _noised(vector: NDArray[np.float64], point: FixedPoint, random: NoiseSource) -> NDArray[np.float64]:
    """`noised_steps` in the vector's own unit."""
    noised: NDArray[np.float64] = noised_steps(vector, point, random) / point.scale
    return noised
