"""Integer noise: discrete Gaussian noise for every release, in shares under the secure sum.

The discrete Gaussian N_Z(0, v) has mass proportional to e^(-k^2 / 2v) at every whole k (Canonne, Kamath and Steinke 2020, "The
discrete Gaussian for differential privacy"). Independent ones sum to one, variances adding, up to a factor so close to
1 that it can be carried in the books exactly; so can its distance from a rounded Gaussian: `shared/privacy/discrete_sum.py`.

**The table.** Thresholds T_k = floor(2^512 P(X <= k)) for all whole k up to K, P(|X| > K) < 2^-540, in whole numbers, so that
no float's rounding reaches the tails. With r = e^(-1/2v), rounded to 240 decimal places by `decimal`, the masses are
m_k = r^(k^2) in fixed point of 704 bits: m_(k+1) = m_k p_k and p_(k+1) = p_k r^2. m_k inherits k^2 times r's relative
error, and 2k^2 floors of 2^-704; with k below 2^18, all are within 2^-590 of m_0. Their sum normalises them.

**A draw** is the number of thresholds at or below a uniform number of 512 bits. Its first 64 bits decide unless they
equal a threshold's; only then are the other 448 drawn, so the table's precision costs no time. The output depends on
integers alone, so attacks on the low bits of floating-point noise (Mironov 2012) have nothing to hold on to.

**The error** in total variation: each mass is off by less than 2^-512 from the floors, by far less from the
fixed point, and what lies beyond K by 2^-540: `NoiseTable.error`. The accountant charges 2^-`SAMPLER_BITS` a share
and coordinate to delta, times e^epsilon, hence so many bits.
"""

from __future__ import annotations

import decimal
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError
from shared.privacy.integers import FINE
from shared.secagg.fixed_point import FixedPoint, Words

LARGEST_TABLE = 2.0**26
"""Variance of the largest table; above it a share is a sum of several draws."""

_BITS = 512
_WORD = 64
_REACH = 540
_FIXED = 704
_DIGITS = 240
_GUIDE = 16
_STEPS = 4
_MOST_DRAWS = 1 << 10
_SMALLEST_VARIANCE = 0.01


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """The law of a discrete Gaussian, ready to draw from.

    Args:
        variance: v, the law's parameter.
        lowest: The smallest value.
        thresholds: T_k for k = lowest, lowest + 1, ..., nondecreasing.
        first: uint64 (thresholds + 1,). First words of the thresholds, and the largest word at the end.
        guide: int64 (2^16,). For every 16 bits that a word may begin with, how many of `first` are below all such words.
    """

    variance: float
    lowest: int
    thresholds: tuple[int, ...] = field(repr=False)
    first: NDArray[np.uint64] = field(repr=False)
    guide: NDArray[np.int64] = field(repr=False)

    @property
    def error(self) -> float:
        """Bound on the total-variation distance between one draw and the exact law."""
        return math.ldexp(2.0 * (len(self.thresholds) + 1), -_BITS)

    def draw(self, count: int, random: Words) -> NDArray[np.int64]:
        """Independent draws, int64 (count,)."""
        words = random.words(count)
        # index: how many first words are below the word. The guide is nearly there for most; the others are searched.
        index: NDArray[np.int64] = self.guide[words >> np.uint64(_WORD - _GUIDE)]
        behind = np.flatnonzero(self.first[index] < words)
        for _ in range(_STEPS):
            index[behind] += 1
            behind = behind[self.first[index[behind]] < words[behind]]
        index[behind] = np.searchsorted(self.first, words[behind], side="left")
        for at in np.flatnonzero(self.first[index] == words):
            index[at] = bisect_right(self.thresholds, _joined(words[at], random.words(_BITS // _WORD - 1)))
        index += self.lowest
        return index


def noise_share(point: FixedPoint, random: Words) -> NDArray[np.int64]:
    """One platform's share of a round's noise.

    Guarantees: each coordinate is N_Z(0, `point.share_variance`), or a sum of up to 64 such of that total, up to
    2^-`SAMPLER_BITS` in total variation (`shared/privacy/discrete_sum.py`).

    Returns:
        int64 (dimension,).
    """
    return discrete_gaussian(point.share_variance, point.dimension, random)


def local_noise(point: FixedPoint, local: int, random: Words) -> NDArray[np.int64]:
    """The whole noise of so many coordinates that stay on the platform, in steps of their finer grid; int64 (local,)."""
    return discrete_gaussian(point.variance * FINE**2, local, random)


def discrete_gaussian(variance: float, count: int, random: Words) -> NDArray[np.int64]:
    """Independent draws of N_Z(0, variance), or of sums of equal ones of that total variance; int64 (count,).

    Raises:
        InputError: the variance is above 2^36.
    """
    if variance == 0 or not count:
        return np.zeros(count, np.int64)
    draws = math.ceil(variance / LARGEST_TABLE)
    if draws > _MOST_DRAWS:
        raise InputError(
            f"integer noise of variance {variance:.3g}",
            where="integer noise",
            do="let more platforms share the noise (a higher threshold, fewer colluders), or take a larger budget",
        )
    table = noise_table(variance / draws)
    total = table.draw(count, random)
    for _ in range(draws - 1):
        total += table.draw(count, random)
    return total


@lru_cache(maxsize=4)
def noise_table(variance: float) -> NoiseTable:
    """The table of a variance; time and memory grow with its square root (`LARGEST_TABLE`: about a second, 50 MB).

    Args:
        variance: Between 0.01 and `LARGEST_TABLE`.

    >>> table = noise_table(100.0)
    >>> table.lowest, len(table.thresholds), table.error < 2.0**-501
    (-265, 531, True)
    """
    if not _SMALLEST_VARIANCE <= variance <= LARGEST_TABLE:
        raise InputError(
            f"a table of integer noise of variance {variance!r}",
            where="integer noise",
            do=f"between {_SMALLEST_VARIANCE} and {LARGEST_TABLE:g}",
        )
    lowest, thresholds = _thresholds(_masses(variance))
    first = np.full(len(thresholds) + 1, (1 << _WORD) - 1, np.uint64)
    first[:-1] = [threshold >> (_BITS - _WORD) for threshold in thresholds]
    edges = np.arange(1 << _GUIDE, dtype=np.uint64) << np.uint64(_WORD - _GUIDE)
    guide = np.searchsorted(first, edges, side="left").astype(np.int64)
    return NoiseTable(variance, lowest, tuple(thresholds), first, guide)


def _masses(variance: float) -> list[int]:
    """m_0, m_1, ..., m_K in units of 2^-704."""
    numerator, denominator = variance.as_integer_ratio()
    with decimal.localcontext(prec=_DIGITS):
        root = (-decimal.Decimal(denominator) / (2 * decimal.Decimal(numerator))).exp()
        ratio = int((root * (decimal.Decimal(2) ** _FIXED)).to_integral_value())
    square = ratio * ratio >> _FIXED
    mass, masses = 1 << _FIXED, []
    # P(|X| > t) <= 2 e^(-t^2 / 2v)
    for _ in range(math.ceil(math.sqrt(2 * variance * (_REACH + 1) * math.log(2))) + 1):
        masses.append(mass)
        mass, ratio = mass * ratio >> _FIXED, ratio * square >> _FIXED
    return masses


def _thresholds(masses: list[int]) -> tuple[int, list[int]]:
    """The lowest value, and T_k from there up to the first that is 2^512 - 1 or ends the table."""
    total = masses[0] + 2 * sum(masses[1:])
    last = len(masses) - 1
    lowest, cumulative = -last, 0
    thresholds: list[int] = []
    for k in range(-last, last):
        cumulative += masses[abs(k)]
        threshold = (cumulative << _BITS) // total
        if threshold == 0:
            lowest = k + 1  # every number is at or above this threshold
            continue
        thresholds.append(threshold)
        if threshold == (1 << _BITS) - 1:
            break
    return lowest, thresholds


def _joined(first: np.uint64, rest: NDArray[np.uint64]) -> int:
    """The words as one number, the first the highest."""
    joined = int(first)
    for word in rest:
        joined = joined << _WORD | int(word)
    return joined
