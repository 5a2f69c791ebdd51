"""The inverse of accounting: the least noise for which a plan stays within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.base.errors import BudgetExceeded, InputError
from shared.privacy.accountants import PREFERRED, Accountant
from shared.privacy.releases import Release

TOLERANCE = 1e-3
"""Relative: the answer is at most this much above the least sufficient noise multiplier."""

SMALLEST = 1e-2
LARGEST = 1e7


def noise_multiplier(
    *,
    budget: float,
    delta: float,
    planned: Release,
    fixed: Sequence[Release] = (),
    multiples: Sequence[tuple[Release, float]] = (),
    accountant: Accountant = PREFERRED,
) -> float:
    """The smallest noise multiplier of `planned` for which it, `fixed` and `multiples` together spend at most `budget`.

    Args:
        budget: Epsilon, finite, > 0.
        delta: In (0, 1).
        planned: The release whose noise is sought; its own noise multiplier is ignored.
        fixed: Releases whose noise is given.
        multiples: Releases whose noise multiplier is so many times that of `planned`.
        accountant: Who counts.

    Returns:
        Standard deviation of the noise over one example's L2 bound (no unit), at least 0.01.

    Guarantees:
        `accountant` itself says so for the returned value; it errs towards more noise.

    Raises:
        BudgetExceeded: `fixed` alone spends the budget, or no noise would be enough.
        InputError: budget or delta is out of range.

    | given | result |
    |---|---|
    | a budget of 0, NaN or infinity; a delta that is not between 0 and 1 | `InputError` |
    | a very large budget | 0.01, the least there is |
    | `fixed` alone spends the budget | `BudgetExceeded` |
    | a budget of 1e-6 | `BudgetExceeded`: no amount of noise is enough |

    >>> from shared.privacy.releases import ReleaseKind
    >>> once = Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.0)
    >>> round(noise_multiplier(budget=1.0, delta=1e-5, planned=once), 2)  # the analytic Gaussian needs 3.73
    3.75
    """
    if not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget is {budget!r}", where="noise calibration", do="a finite epsilon above 0")
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta!r}", where="noise calibration", do="delta must be above 0 and below 1")
    if fixed:
        before = accountant.epsilon(fixed, delta)
        if before.epsilon >= budget:
            raise BudgetExceeded(
                f"the releases beside training alone spend epsilon {before.epsilon:.4g} of a budget of {budget:.4g}",
                where=f"noise calibration at delta {delta:g} ({before.accountant})",
                do="raise the budget, or give those releases more noise (a larger noise multiplier) or fewer repetitions",
            )

    def excess(noise: float) -> float:
        sought = [replace(one, noise_multiplier=times * noise) for one, times in ((planned, 1.0), *multiples)]
        spent = accountant.epsilon([*fixed, *sought], delta).epsilon
        # Nearly linear in log noise, so that interpolation needs few calls; 0 is "well below".
        return math.log(max(spent, budget * 1e-9) / budget)

    return _least(excess, guess=_guess(planned, budget, delta), budget=budget)


def _guess(planned: Release, budget: float, delta: float) -> float:
    # A Gaussian mechanism of shift m: epsilon is about m²/2 + m sqrt(2 log(1/delta)); see `pld.grid`.
    tail = math.sqrt(2 * math.log(1 / delta))
    if planned.group_size > 1:
        budget /= 2  # a removal and an addition share it
    shift = math.sqrt(tail * tail + 2 * budget) - tail
    return planned.sample_rate * planned.group_size * math.sqrt(planned.steps) / shift


def _least(excess: Callable[[float], float], *, guess: float, budget: float) -> float:
    """Smallest noise with excess <= 0, up to TOLERANCE: bracket, then interpolate, guarded by bisection."""
    noise = min(max(guess, 0.3), LARGEST)
    low: tuple[float, float] | None = None  # too little noise
    high: tuple[float, float] | None = None  # enough
    width = math.inf
    while True:
        value = excess(noise)
        if value <= 0:
            high = (noise, value)
        else:
            low = (noise, value)
        if high is None:
            if noise >= LARGEST:
                raise BudgetExceeded(
                    f"no amount of noise keeps this plan within epsilon {budget:.4g}",
                    where="noise calibration",
                    do="raise the budget, or plan fewer releases",
                )
            noise = min(noise * min(max(math.exp(1.1 * value), 1.05), 4.0), LARGEST)
        elif low is None:
            if noise <= SMALLEST:
                return noise
            noise = max(noise / min(max(math.exp(-1.1 * value), 1.05), 2.0), SMALLEST)
        else:
            if high[0] <= low[0] * (1 + TOLERANCE):
                return high[0]
            last, width = width, math.log(high[0] / low[0])
            noise = _inside(low, high, bisect=width > last / 2, enough=value <= 0)


def _inside(low: tuple[float, float], high: tuple[float, float], *, bisect: bool, enough: bool) -> float:
    if bisect or not math.isfinite(low[1]):
        return math.sqrt(low[0] * high[0])
    share = low[1] / (low[1] - high[1])
    root: float = low[0] * (high[0] / low[0]) ** share
    # Step a little across the root, towards the side that was not found last, so that both ends close in.
    root *= 1 - TOLERANCE / 3 if enough else 1 + TOLERANCE / 3
    margin = 1 + TOLERANCE / 4
    return min(max(root, low[0] * margin), high[0] / margin)
