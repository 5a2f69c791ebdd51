"""From noised sums to one score per canary, by an attacker who knows every other row.

A release is y = sum_j b_j c_j + N(0, s^2 I): the coins b of the canaries, what each adds where it is in, and the noise, everybody
else's part having been subtracted. With K the products of the c, the least mean squared error of a linear guess at b is that of

    b = 1/2 + (sum_r K_r / s_r^2 + 4 I)^-1 sum_r (C_r y_r - K_r 1/2) / s_r^2

over the releases r, since a fair coin has mean 1/2 and variance 1/4. For canaries whose c do not meet it orders them as the
likelihood ratio does, which no test beats (Neyman and Pearson).

The attacker does not take anybody's word for s: `likely_noise` is what the release itself says. So a sum with less noise than was
charged weighs as much as it tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

from simulations.attack.one_run import Floats


@dataclass(frozen=True, kw_only=True)
class LinearView:
    """One release, as far as canaries are in it.

    Args:
        along: float64 (m,). Product of what each canary adds with the release, less what everybody else adds.
        meeting: float64 (m, m). Products of what canaries add with each other.
        noise: Standard deviation of the noise in each number of the release.
        energy: Product of the release with itself, less what everybody else adds.
        size: Numbers of the release.
    """

    along: Floats = field(repr=False)
    meeting: Floats = field(repr=False)
    noise: float
    energy: float
    size: int


def decoded(views: Sequence[LinearView]) -> Floats:
    """The guess at each canary's coin, float64 (m,).

    >>> one = LinearView(along=np.array([1.0, 0.0]), meeting=np.eye(2), noise=0.5, energy=1.0, size=2)
    >>> decoded([one]).tolist()
    [0.75, 0.25]
    """
    count = len(views[0].along)
    total, told = 4 * np.eye(count), np.zeros(count)
    for view in views:
        # Where nothing was added, as little counts as noise as the arithmetic leaves room for.
        weight = 1 / max(view.noise, 1e-3) ** 2
        total += weight * view.meeting
        told += weight * (view.along - view.meeting.sum(1) / 2)
    return np.asarray(0.5 + np.linalg.solve(total, told), np.float64)


def likely_noise(view: LinearView) -> float:
    """The deviation of the noise that makes a release likeliest; between a thousandth and ten times what was said.

    Coins taken as normal, y less its mean is N(0, C C' / 4 + s^2 I): along each direction in which canaries add something its
    variance is known but for s^2, and across all of them it is s^2.
    """
    values, vectors = np.linalg.eigh(view.meeting)
    strong = values > 1e-9 * max(float(values[-1]), 1e-12)
    values, vectors = values[strong], vectors[:, strong]
    half = view.meeting.sum(1) / 2
    parts = (vectors.T @ (view.along - half)) ** 2 / values
    # |y - mean|^2, of which `parts` is what lies along the canaries.
    rest = max(0.0, view.energy - float(view.along.sum()) + float(view.meeting.sum()) / 4 - float(parts.sum()))
    across = max(0, view.size - len(values))

    def unlikely(logarithm: float) -> float:
        variance = math.exp(2 * logarithm)
        along = values / 4 + variance
        return float((np.log(along) + parts / along).sum() + across * math.log(variance) + rest / variance)

    said = math.log(max(view.noise, 1e-3))
    grid = np.linspace(said - math.log(1000), said + math.log(10), 60)
    start = int(np.argmin([unlikely(float(one)) for one in grid]))
    low, high = grid[max(0, start - 1)], grid[min(len(grid) - 1, start + 1)]
    return math.exp(float(minimize_scalar(unlikely, bounds=(low, high), method="bounded").x))
