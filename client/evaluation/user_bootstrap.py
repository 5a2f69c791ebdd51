"""95 % intervals by resampling users, each with all of theirs (Efron & Tibshirani 1993, "An introduction to the bootstrap")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000
_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure of some users and its 95 % interval.

    Args:
        value: NaN where it is not defined, as the precision of what predicts nothing.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, rounded to 6 digits; null where it is not defined."""
        return {
            name: None if np.isnan(value) else round(value, 6)
            for name, value in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def resampled_counts(users: int, *, seed: int, resamples: int = RESAMPLES) -> Iterator[Floats]:
    """How often each user is drawn in some of the resamples, float64 (some, users), until all were had."""
    random = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(users, 1))
    for begin in range(0, resamples, at_once):
        draws = [np.bincount(random.integers(0, users, users), minlength=users) for _ in range(min(at_once, resamples - begin))]
        yield np.stack(draws).astype(np.float64)


def sum_estimates(sums: Floats, figures: Callable[[Floats], Floats], *, seed: int, resamples: int = RESAMPLES) -> list[Estimate]:
    """Estimates of figures that are functions of sums over users.

    Args:
        sums: float64 (users, terms), at least one user.
        figures: Sums over users (n, terms) -> (n, figures).
    """
    values = figures(sums.sum(0, keepdims=True))[0]
    drawn = [figures(counts @ sums) for counts in resampled_counts(len(sums), seed=seed, resamples=resamples)]
    return [estimate_of(float(value), column) for value, column in zip(values, np.concatenate(drawn).T, strict=True)]


def list_estimate(
    lists: NDArray[np.int32], figure: Callable[[NDArray[np.int32]], float], *, seed: int, resamples: int = 200
) -> Estimate:
    """The estimate of a figure of all users' lists together, such as how many items are in any.

    A resample has fewer different users, and so fewer items, than there are: its figures are moved so that their mean is the
    figure of all.

    Args:
        lists: int32 (users, places), at least one user.
    """
    random = np.random.default_rng(seed)
    value = figure(lists)
    drawn = np.array([figure(lists[random.integers(0, len(lists), len(lists))]) for _ in range(resamples)])
    return estimate_of(value, np.clip(drawn + value - drawn.mean(), 0.0, 1.0))


def quotient(above: Floats, below: Floats) -> Floats:
    """Above over below, float64 of their shape; NaN where nothing is below."""
    found: Floats = np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
    return found


def estimate_of(value: float, drawn: Floats) -> Estimate:
    """A figure with the 2.5 and 97.5 percentiles of those that were drawn, (resamples,), NaN where one is not defined."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return Estimate(value=value, low=float(low), high=float(high))
