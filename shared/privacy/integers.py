"""The integer part of a release: what the accountant must know of a sum of rounded vectors and whole-number noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from shared.base.errors import InputError
from shared.privacy.rounding import rounded_norm

MAX_DIMENSION = 1 << 28
MAX_HONEST = 1 << 16
MAX_REACH = 2.0**40
SMOOTHING = 4.0
"""Variance, in squared steps, that the accounted Gaussian gives away to be an integer: s^2 in `discrete`."""
FINE = 4
"""Steps of the grid of what stays on a platform, per step of what it sends."""
LEAST_SHARE = 8.0
"""Least variance of one share, in squared steps; below it the shares' sum is not accounted for."""


@dataclass(frozen=True, kw_only=True, order=True)
class Integers:
    """A release of integers: randomised rounding, then discrete Gaussian noise in shares. See `discrete`.

    With it a release's noise multiplier is the standard deviation of the noise over `norm`, both in steps.

    Args:
        reach: L2 bound of one user's scaled vector before rounding, in steps; float error included.
        dimension: Coordinates.
        failure: Probability, in [0, 1), that rounding lengthens it beyond `norm` in a step in which the user is sampled.
        honest: Shares that make up the noise: honest platforms that are in every released sum, at least.
        local: Coordinates beside these that stay on the platform, on a grid `FINE` times as fine, with all of the noise.

    Raises:
        InputError: a value is of another type or out of its range.
    """

    reach: float
    dimension: int
    failure: float
    honest: int
    local: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("dimension", 1, MAX_DIMENSION), ("honest", 1, MAX_HONEST), ("local", 0, MAX_DIMENSION)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise _wrong(name, value, f"a whole number between {least} and {most}")
        for name in ("reach", "failure"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise _wrong(name, value, "a finite number")
            object.__setattr__(self, name, float(value))
        if not 0 < self.reach <= MAX_REACH:
            raise _wrong("reach", self.reach, f"above 0 and at most {MAX_REACH:g}")
        if not 0 <= self.failure < 1:
            raise _wrong("failure", self.failure, "at least 0 and below 1")

    @cached_property
    def norm(self) -> float:
        """L2 bound, in steps, of what one user changes in the integers.

        Those of the local coordinates count in the same steps: divided by `FINE`. Each of the four steps in `rounding` holds
        with d replaced by dimension + local / FINE^2, since a local coordinate's rounding moves it by a `FINE`-th as much:
        its variance is at most 1 / (4 FINE^2), the two values of its square are at most (2 |v| + 1 / FINE) / FINE apart, which
        is less than 2 |v| + 1 / FINE, and it is off by at most 1 / FINE.
        """
        return rounded_norm(self.reach, dimension=self.dimension + self.local / FINE**2, failure=self.failure)


def _wrong(name: str, found: object, expected: str) -> InputError:
    return InputError(f"{name} is {found!r}", where="the integer part of a privacy release", do=f"{name} must be {expected}")
