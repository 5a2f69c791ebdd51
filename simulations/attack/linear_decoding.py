"""From noised sums to one score per canary, by an attacker who knows every other row.

A release is y = sum_j b_j c_j + N(0, s^2 I): the coins b of the canaries, what each adds where it is in, and the noise, everybody
else's part having been subtracted. With K the products of the c, the least mean squared error of a linear guess at b is that of

    b = 1/2 + (sum_r K_r / s_r^2 + 4 I)^-1 sum_r (C_r y_r - K_r 1/2) / s_r^2

over the releases r, since a fair coin has mean 1/2 and variance 1/4. For canaries whose c do not meet it orders them as the
likelihood ratio does, which no test beats (Neyman and Pearson).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from simulations.attack.one_run import Floats


@dataclass(frozen=True, kw_only=True)
class LinearView:
    """One release, as far as canaries are in it.

    Args:
        along: float64 (m,). Product of what each canary adds with the release, less what everybody else adds.
        meeting: float64 (m, m). Products of what canaries add with each other.
        noise: Standard deviation of the noise in each number of the release.
    """

    along: Floats = field(repr=False)
    meeting: Floats = field(repr=False)
    noise: float


def decoded(views: Sequence[LinearView]) -> Floats:
    """The guess at each canary's coin, float64 (m,).

    >>> one = LinearView(along=np.array([1.0, 0.0]), meeting=np.eye(2), noise=0.5)
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
