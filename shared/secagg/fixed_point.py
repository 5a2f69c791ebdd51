"""Fixed point for every release: from a platform's real vector to integers, modulo 2^b under the secure sum, and back.

All parties derive the same scale, box and width from the same public facts, so nothing about them travels but the facts.
A release that a platform noises by itself (an update, popularities, metrics) is the case of one participant, whose integers are
neither masked nor packed (`alone`).

**A platform's vector.** x, the sum of its users' clipped gradients, becomes

    scale:  s x                                  s = `clip_steps` / C, so that one user's bound is `clip_steps` long
    box:    every coordinate into [-box, box]    a projection on a convex set: never moves two vectors apart in L2
    round:  floor(s x + u), u uniform            see `shared/privacy/rounding.py`
    noise:  + a share of integer noise           see `client/privacy/discrete_gaussian.py`
    wrap:   modulo 2^b                           under the secure sum

**No overflow.** Rounding keeps a vector in the box, since the box is whole: floor(box + u) = box for u < 1. So the data
of n platforms sum to at most n box in every coordinate. A share is a discrete Gaussian of parameter sigma^2 / h, and
E e^(a X) <= e^(a^2 sigma^2 / 2h), as the theta sum at any real is at most that at 0
(`shared/privacy/discrete_sum.py`). So the sum X of n shares, V = n sigma^2 / h, has P(|X| > t) <= 2 e^(-t^2 / 2V) (Chernoff),
which grows with V, so that it holds for fewer
survivors too. `tail` is a t for which d times this is at most 2^-60.
By construction n box + tail <= 2^(b-1) - 1. So the data alone can never overflow, and the sum of data and noise wraps
anywhere in the vector with probability below 2^-60 a round. Privacy is not affected: reducing modulo 2^b is
post-processing.

**Float arithmetic.** The sensitivity that is accounted is C (1 + SLACK), not C. The slack covers, between two neighbouring
data sets: a clipped vector's norm being above C by rounding, up to SLACK/4; the error of the float sum of either data set,
up to SLACK/4 each; and, far below the rest, s x being rounded to 53 bits here, and its fraction to 32: for d = 2^28
that moves two vectors apart by another 2^-17 of at least 98 steps. A float64 sum of
n float32 vectors is off by at most n^2 2^-53 C, which is covered to a million users in a batch; a float32 sum, off by up
to n^2 2^-24 C, only to 90. So sum in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError, PrivacyError
from shared.privacy.integers import LEAST_SHARE, MAX_DIMENSION, Integers

SLACK = 2.0**-9
"""Part of the clip by which float arithmetic may lengthen one user's vector; accounted for."""
FAILURE = 2.0**-64
"""Probability, per step in which a user is sampled, that rounding lengthens their vector beyond the accounted norm."""
WRAP = 2.0**-60
"""Bound on the probability that noise and data together wrap anywhere in one round's sum."""
MAX_BITS = 32
MOST_STEPS = (1 << 31) - 1
"""Bound of a coordinate, in steps."""
MAX_PARTICIPANTS = 1 << 16
MOST_SHARE = 2.0**32
"""Variance of one share that can be drawn, in squared steps (`client/privacy/discrete_gaussian.py`)."""

_GRAIN = 32
"""Bits after the point while a coordinate is rounded by chance."""
_INFLATIONS = (0.01, 0.015, 0.02, 0.03, 0.05)
_PLAIN_BITS = 18
_BLOCK = 1 << 13
"""Coordinates that are encoded at a time: few enough to stay in a core's own cache."""
_PLAIN_PARTICIPANTS = 50


class Words(Protocol):
    """A source of uniform random bits; `client.privacy.noise_sources` has two."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Independent uniform words of 64 bits, uint64 (count,)."""


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """The fixed point that a run's public facts determine.

    Args:
        dimension: d, coordinates of the summed vector.
        participants: n, platforms that may be in one sum, at most.
        honest: h, honest platforms that are in every released sum, at least: the threshold less the colluders.
        clip: C, L2 bound of one user's vector, in the vector's own unit.
        noise_multiplier: z, standard deviation of the noise of h shares over the L2 bound of one user's *integer* vector,
            rounding included (`norm`). 0 adds no noise.
        batch: Expected number of users in the largest platform's batch; public. A coordinate of the sum of so many
            vectors should fit: see `room`. One that does not fit is cut to the box, which costs accuracy alone.
        coordinate: Wanted bound of a coordinate in clips, where it is known better than by the batch; 0: as `room` says. Words
            are then as wide as it takes: such a sum is one of a run, and not one of its many rounds.
        alone: The platform noises the release by itself: nothing is packed, so words may be as wide as there are.

    Guarantees:
        |coordinate| <= `box` after `encode`; `participants` x `box` + `tail` < 2^(`bits` - 1). `inflation` is at most 1.05;
        `bits` is at most 18 for up to 50 platforms, and one more for every doubling, wherever the least room allows it.

    Raises:
        InputError: a value is out of its range, or 32 bits would not do.

    >>> point = FixedPoint(dimension=36_864, participants=50, honest=24, clip=1.0, noise_multiplier=2.0)
    >>> point.bits, point.clip_steps, point.box
    (18, 1135, 1941)
    >>> round(point.inflation, 4)
    1.01
    """

    dimension: int
    participants: int
    honest: int
    clip: float
    noise_multiplier: float
    batch: float = 1.0
    coordinate: float = 0.0
    alone: bool = False

    @classmethod
    def own(cls, *, dimension: int, clip: float, noise_multiplier: float) -> FixedPoint:
        """Of a release to which one platform alone adds all of the noise."""
        return cls(dimension=dimension, participants=1, honest=1, clip=clip, noise_multiplier=noise_multiplier, alone=True)

    def __post_init__(self) -> None:
        for name, most in (("dimension", MAX_DIMENSION), ("participants", MAX_PARTICIPANTS), ("honest", self.participants)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise _wrong(name, value, f"a whole number between 1 and {most}")
        for name in ("clip", "noise_multiplier", "batch", "coordinate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise _wrong(name, value, "a finite number, at least 0")
        if not self.clip > 0:
            raise _wrong("clip", self.clip, "above 0")
        if 0 < self.share_variance < LEAST_SHARE:
            raise InputError(
                f"a noise share of variance {self.share_variance:.3g} squared steps",
                where="the fixed point of a release",
                do=f"at least {LEAST_SHARE:g} is accounted for: a larger noise multiplier, or fewer honest survivors to count on",
            )
        if self.share_variance > MOST_SHARE:
            raise InputError(
                f"a noise share of variance {self.share_variance:.3g} squared steps",
                where="the fixed point of a release",
                do="let more platforms share the noise (a higher threshold, fewer colluders), or take a larger budget",
            )
        if self.bits > MAX_BITS:
            raise InputError(
                f"the sum of {self.participants} platforms at noise multiplier {self.noise_multiplier:g} needs {self.bits} bits",
                where="the fixed point of a release",
                do="fewer platforms, a larger share of honest survivors, or less noise (a larger budget)",
            )

    @cached_property
    def clip_steps(self) -> int:
        """C in steps of the integer grid, whole so that two machines cannot disagree about it."""
        return self._chosen[0]

    @cached_property
    def bits(self) -> int:
        """b: width of one word of the sum."""
        return self._chosen[1]

    @property
    def room(self) -> float:
        """Wanted bound of a coordinate of one platform's sum, in clips: `least_room`, and a 25th of the batch times it.

        Coordinates of real sums of clipped gradients reached a 35th to a 40th of the batch (31,000 parameters, MovieLens).
        """
        return self.coordinate or self.least_room * max(1.0, self.batch / 25)

    @property
    def least_room(self) -> float:
        """Bound that is kept to even where it costs wider words: one clip, less where it spreads over more coordinates."""
        return min(1.0, math.sqrt(100_000 / self.dimension))

    @property
    def scale(self) -> float:
        """s: steps per unit of the real vector."""
        return self.clip_steps / self.clip

    @cached_property
    def integers(self) -> Integers:
        """What an accountant must know of it."""
        return self._integers(self.clip_steps)

    def integers_with(self, local: int) -> Integers:
        """`integers` where so many coordinates beside these stay on the platform, noised in full on a finer grid."""
        return replace(self.integers, local=local)

    def multiplier_with(self, local: int) -> float:
        """The noise multiplier of the whole vector, local coordinates and all: the same noise over a slightly longer vector."""
        # In this order: without local coordinates the ratio is 1, and the result not a rounding below what was agreed.
        return self.noise_multiplier * (self.norm / self.integers_with(local).norm)

    @property
    def norm(self) -> float:
        """L2 bound, in steps, of what one user can change in the integers, but for probability `FAILURE`."""
        return self.integers.norm

    @property
    def inflation(self) -> float:
        """`norm` over `clip_steps`: what rounding and float arithmetic cost, as a factor of the noise."""
        return self.norm / self.clip_steps

    @cached_property
    def box(self) -> int:
        """Bound of one platform's integers, before noise; whole."""
        return self._box(self.bits, self.tail)

    @cached_property
    def tail(self) -> int:
        """Bound of all platforms' noise, but for probability `WRAP` over the whole vector."""
        return self._tail(self.norm)

    @property
    def variance(self) -> float:
        """sigma^2: parameter of the noise of h shares, in squared steps."""
        return (self.noise_multiplier * self.norm) ** 2

    @property
    def share_variance(self) -> float:
        """Parameter of one platform's share, sigma^2 / h; its variance but for one part in 2^100."""
        return self.variance / self.honest

    @property
    def noise(self) -> float:
        """Standard deviation of the noise of h shares, in the vector's own unit."""
        return self.noise_multiplier * self.norm / self.scale

    def encode(self, total: NDArray[np.float64], random: Words) -> NDArray[np.int64]:
        """The integers of a platform's sum: scaled, boxed and rounded by chance; no noise yet.

        Args:
            total: float64 (dimension,). Sum of vectors of L2 norm at most `clip`, accumulated in float64.
            random: Where the rounding's chance comes from.

        Returns:
            int64 (dimension,), between -box and box. Unbiased wherever the box does not cut.

        Raises:
            PrivacyError: a value is not finite, so that no bound holds.
        """
        if total.shape != (self.dimension,) or total.dtype != np.float64:
            raise _wrong("the sum", (total.shape, str(total.dtype)), f"float64 of shape ({self.dimension},)")
        return rounded(total * self.scale, random, box=self.box)

    def beyond(self, total: NDArray[np.float64]) -> int:
        """Coordinates of a platform's sum that the box cuts. Private: for the platform's own log only."""
        return int(np.count_nonzero(np.abs(total) * self.scale > self.box))

    def wrap(self, integers: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Integers modulo 2^b, uint32, the same shape."""
        words = integers.astype(np.uint32)  # keeps the low 32 bits
        words &= np.uint32((1 << self.bits) - 1)
        return words

    def decode(self, total: NDArray[np.uint32]) -> NDArray[np.float64]:
        """The real sum, float64 (dimension,), from the sum of words modulo 2^b, uint32 (dimension,).

        Raises:
            InputError: another shape or type, or a word of more than b bits.
        """
        if total.shape != (self.dimension,) or total.dtype != np.uint32 or int(total.max()) >> self.bits:
            raise _wrong("the sum", (total.shape, str(total.dtype)), f"uint32 of shape ({self.dimension},), {self.bits} bits")
        # Up to the sign bit, and back with its copies.
        spare = MAX_BITS - self.bits
        lifted: NDArray[np.int32] = (total << np.uint32(spare)).view(np.int32) >> np.int32(spare)
        return lifted / self.scale

    @cached_property
    def _chosen(self) -> tuple[int, int]:
        """Steps per clip, and bits: the finest scale at which the wanted room fits narrow words, with the fewest bits.

        Where none does, the coarsest scale, which leaves the most room, in words as wide as is allowed; and if not even
        the least room fits them, wider words. A scale whose noise could not be drawn is passed over.
        """
        narrow = _PLAIN_BITS + math.ceil(math.log2(max(1.0, self.participants / _PLAIN_PARTICIPANTS)))
        widest = MAX_BITS if self.coordinate else narrow
        scales = [least_steps(self.dimension, inflation) for inflation in _INFLATIONS]
        for steps in scales:
            if (self.noise_multiplier * self._integers(steps).norm) ** 2 / self.honest > MOST_SHARE:
                continue
            if self.alone:
                return steps, MAX_BITS  # nothing is packed, and nothing cut
            if (bits := self._bits(steps, self.room)) <= widest:
                return steps, bits
        return scales[-1], max(widest, self._bits(scales[-1], self.least_room))

    def _bits(self, steps: int, room: float) -> int:
        tail = self._tail(self._integers(steps).norm)
        wanted = math.ceil(room * steps)
        # box = floor((2^(b-1) - 1 - tail) / n) >= wanted
        return (self.participants * wanted + tail).bit_length() + 1

    def _box(self, bits: int, tail: int) -> int:
        return ((1 << (bits - 1)) - 1 - tail) // self.participants

    def _tail(self, norm: float) -> int:
        variance = (self.noise_multiplier * norm) ** 2 / self.honest * self.participants
        return math.ceil(math.sqrt(2 * variance * math.log(2 * self.dimension / WRAP)))

    def _integers(self, steps: int) -> Integers:
        return Integers(reach=steps * (1 + SLACK), dimension=self.dimension, failure=FAILURE, honest=self.honest)


def rounded(scaled: NDArray[np.float64], random: Words, *, box: int = MOST_STEPS) -> NDArray[np.int64]:
    """A vector in steps of a grid, boxed and rounded by chance to whole ones: floor(x + u), u uniform in [0, 1).

    Args:
        scaled: float64 (n,).
        box: Bound of every coordinate, below 2^31.

    Returns:
        int64 (n,), between -box and box.

    Raises:
        PrivacyError: a value is not finite, so that no bound holds.
    """
    whole = np.empty(len(scaled), np.int64)
    for start in range(0, len(scaled), _BLOCK):
        part = scaled[start : start + _BLOCK].copy()
        if not np.isfinite(part.sum()):  # as one infinity or NaN makes it
            raise PrivacyError("a sum over users is not finite", where="the fixed point of a release")
        np.clip(part, -box, box, out=part)
        # In whole 2^-32ths of a step, toward zero: then floor(x + u), u on the same grid, is a sum and a shift, and exact.
        # A whole x stays what it is, whatever u < 1. The box is below 2^31, so 64 bits hold it all.
        part *= 2.0**_GRAIN
        fine = whole[start : start + _BLOCK]
        fine[:] = part
        fine += random.words(-(-len(fine) // 2)).view(np.uint32)[: len(fine)]
        fine >>= _GRAIN
    return whole


def planning() -> Integers:
    """The integer part for which a platform plans before it knows any round's fixed point.

    A platform says which noise multiplier it needs before the largest need, and with it the scale, is agreed; and rounds may
    send different numbers of coordinates. At a noise multiplier z the accounted Gaussian has the multiplier
    sqrt(z^2 - 4 / norm^2), which grows with the scale and with the dimension. So what suffices at the coarsest scale for
    one coordinate suffices at every scale for any number; at z = 1 that is 0.02% more noise than the finest would need.

    >>> round(planning().norm)
    98
    """
    return Integers(reach=least_steps(1, _INFLATIONS[-1]) * (1 + SLACK), dimension=1, failure=FAILURE, honest=1)


def stretch(dimension: int, local: int) -> float:
    """The most by which a platform's local coordinates can lengthen one user's vector: at the coarsest scale.

    A platform whose plan needs a noise multiplier z needs z times this one of a sum in which it keeps coordinates to itself.

    >>> round(stretch(36_864, 200_000), 4), stretch(36_864, 0)
    (1.0107, 1.0)
    """
    part = Integers(reach=least_steps(dimension, _INFLATIONS[-1]) * (1 + SLACK), dimension=dimension, failure=FAILURE, honest=1)
    if not local:
        return 1.0
    # A trillionth more, which float arithmetic may take away again (`FixedPoint.multiplier_with`).
    return replace(part, local=local).norm / part.norm * (1 + 1e-12)


def least_steps(dimension: int, inflation: float) -> int:
    """Steps per clip for which rounding and float arithmetic lengthen a vector of norm C by at most `inflation`.

    Solves (1 + SLACK)^2 k^2 + d/4 + l ((1 + SLACK) k + sqrt(d)/2) = (1 + inflation)^2 k^2 for k, with
    l = sqrt(2 log(1/FAILURE)); rounded up.

    >>> least_steps(36_864, 0.01)
    1135
    """
    spread = math.sqrt(2 * math.log(1 / FAILURE))
    square = (1 + inflation) ** 2 - (1 + SLACK) ** 2
    linear = spread * (1 + SLACK)
    constant = dimension / 4 + spread * math.sqrt(dimension) / 2
    return math.ceil((linear + math.sqrt(linear**2 + 4 * square * constant)) / (2 * square))


def _wrong(name: str, found: object, expected: str) -> InputError:
    return InputError(f"{name} is {found!r}", where="the fixed point of a release", do=f"expected {expected}")
