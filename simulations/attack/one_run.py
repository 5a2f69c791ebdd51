"""Lower bounds of epsilon from one training run with many canaries, each in it by the toss of a coin.

An attacker orders the canaries by a score and guesses: the highest are in, the lowest are out, and of the others it says nothing
(or of all but the highest).
If the run is private, it cannot guess right too often. Two theorems say how often:

- Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run", Theorem 5.2: for (epsilon, delta)-privacy the
  number of right guesses among r is stochastically below Binomial(r, e^epsilon / (1 + e^epsilon)), up to delta.
- Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-differential privacy in one run", Theorem 8: for f-privacy, a recursion over
  the number of right guesses. The f here is that of a Gaussian mechanism, which a sum with Gaussian noise is and which a
  composition of many sampled ones is close to; the bound is of that mechanism's epsilon.

How many are guessed is chosen by what the scores give, among `SHARES`; so each of these is tested at its part of 1 - confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.special import log_ndtr, ndtr, ndtri  # type: ignore[import-untyped]
from scipy.stats import binom  # type: ignore[import-untyped]

from shared.base.errors import InputError

CONFIDENCE = 0.95
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Parts of the canaries that are guessed."""

LARGEST = 100.0
"""Epsilon, and mu of a Gaussian mechanism, beyond which nothing is looked for."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CanaryScores:
    """One score per canary, the higher the likelier that it was in.

    Args:
        score: float64 (m,).
        inside: bool (m,). Whether it was in, by a fair coin of its own.

    Raises:
        InputError: shapes that do not fit, a score that is not finite, or canaries of one kind alone.
    """

    score: Floats = field(repr=False)
    inside: NDArray[np.bool_] = field(repr=False)

    def __post_init__(self) -> None:
        fits = self.score.ndim == 1 and self.score.shape == self.inside.shape and self.inside.dtype == np.bool_
        if not fits or not np.isfinite(self.score).all():
            raise InputError(f"scores {self.score.shape} of canaries {self.inside.shape}", do="give one finite score per canary")
        if self.inside.all() or not self.inside.any():
            raise InputError(f"{len(self)} canaries, all of one kind", do="use more canaries")

    def __len__(self) -> int:
        return len(self.score)

    def guessed(self, guesses: int, *, both: bool = True) -> int:
        """Right ones of so many guesses: that the highest are in, and, half of the guesses, that the lowest are out.

        Args:
            both: Whether any are guessed to be out: where only few canaries are certain, they are those of the highest scores.
        """
        # Ties are broken by the canary's number, which says nothing of the coin.
        order = np.argsort(self.score, kind="stable")
        low = guesses // 2 if both else 0
        high = guesses - low
        return int(self.inside[order[len(order) - high :]].sum() + (~self.inside[order[:low]]).sum())


def steinke_epsilon(scores: CanaryScores, delta: float, *, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon for which (epsilon, delta)-privacy is refuted; 0 where none is."""
    return _best(scores, confidence, lambda m, r, v, chance: one_run_epsilon(m, r, v, delta=delta, chance=chance))


def gaussian_epsilon(scores: CanaryScores, delta: float, *, confidence: float = CONFIDENCE) -> float:
    """Epsilon at `delta` of the noisiest Gaussian mechanism that is not refuted."""
    return epsilon_of_mu(_best(scores, confidence, lambda m, r, v, chance: one_run_mu(m, r, v, chance=chance)), delta)


def one_run_epsilon(canaries: int, guesses: int, right: int, *, delta: float, chance: float) -> float:
    """Steinke et al.: the largest epsilon refuted at significance `chance`.

    >>> round(one_run_epsilon(1000, 100, 95, delta=0.0, chance=0.05), 3)
    2.172
    """

    def excess(epsilon: float) -> float:
        rate = 1 / (1 + math.exp(-epsilon))
        tail = float(binom.sf(right - 1, guesses, rate))
        if delta and right:
            # Of i guesses too many, the probability mass below the tail, per guess.
            steps = np.arange(1, right + 1)
            mass = binom.sf(right - steps - 1, guesses, rate) - tail
            tail += max(0.0, float(np.max(mass / steps))) * 2 * canaries * delta
        return chance - tail

    return _largest(excess)


def one_run_mu(canaries: int, guesses: int, right: int, *, chance: float) -> float:
    """Mahloujifar et al.: the largest mu for which mu-Gaussian privacy is refuted at significance `chance`.

    >>> round(one_run_mu(1000, 100, 95, chance=0.05), 3)
    0.787
    """

    def excess(mu: float) -> float:
        rights, wrongs = chance * right / canaries, chance * (guesses - right) / canaries
        for i in range(right - 1, -1, -1):
            grown = max(wrongs, float(ndtr(ndtri(rights) - mu)))
            if grown == wrongs:
                break
            rights = min(1.0, rights + i / (guesses - i) * (grown - wrongs))
            wrongs = grown
        return rights + wrongs - guesses / canaries

    return _largest(excess)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of a mu-Gaussian mechanism at delta > 0 (Dong, Roth and Su 2022, Corollary 2.13).

    >>> round(epsilon_of_mu(1.0, 1e-5), 3)
    4.377
    """
    if mu == 0:
        return 0.0

    def excess(epsilon: float) -> float:
        # In logarithms: e^epsilon alone may be too large for a float.
        right = epsilon + _log_ndtr(-epsilon / mu - mu / 2)
        return float(ndtr(-epsilon / mu + mu / 2)) - math.exp(right) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9))


def _best(scores: CanaryScores, confidence: float, bound: Callable[[int, int, int, float], float]) -> float:
    m, chance = len(scores), (1 - confidence) / (2 * len(SHARES))
    counts = [max(2, round(share * m)) for share in SHARES]
    return max(bound(m, guesses, scores.guessed(guesses, both=both), chance) for guesses in counts for both in (True, False))


def _largest(excess: Callable[[float], float]) -> float:
    """Where a falling function crosses 0, by excess; 0 where it is nowhere above."""
    if excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST) > 0:
        return LARGEST
    return float(brentq(excess, 0.0, LARGEST, xtol=1e-6))


def _log_ndtr(x: float) -> float:
    return float(log_ndtr(x))
