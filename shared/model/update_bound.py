"""The most that local training can move a parameter in a round: what lies beyond was not made by the settings' training.

A noised update has no useful bound on its norm: noise is unbounded, and Adam divides by its size. But Adam's own steps are
bounded, whatever the gradients and their noise are.

Claim. One step of Adam with moments of decay b1, b2 and rate a moves no coordinate by more than
a (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)), if b1^2 < b2.

Proof. Write m = (1 - b1) sum_j b1^j g_(t-j) and v = (1 - b2) sum_j b2^j g_(t-j)^2. By Cauchy and Schwarz with the weights
b2^(j/2), |m| <= (1 - b1) sqrt(sum_j (b1^2 / b2)^j) sqrt(sum_j b2^j g_(t-j)^2), and the last root is sqrt(v / (1 - b2)). The
geometric sum is at most 1 / (1 - b1^2 / b2). The corrections for the start multiply |m| / sqrt(v) by
sqrt(1 - b2^t) / (1 - b1^t). With b1 = 0.9, b2 = 0.999 that is at most 1: 1 - b2^t <= t (1 - b2) and 1 - b1^t >= 1 - b1, so it
is below 1 for t <= 10; for t > 10, 1 - b1^t > 0.65 > sqrt(1 - b2^t) as long as t < 550, and from then on 1 - b1^t differs from
1 by less than 1e-25 while sqrt(1 - b2^t) < 1. What is added to the root in the denominator only makes the step smaller.
(Kingma & Ba 2015, section 2.1, give (1 - b1) / sqrt(1 - b2), which holds for one gradient among zeros.)
"""

from __future__ import annotations

import math

from shared.base.settings import Settings

ADAM = 0.1 / math.sqrt(0.001 * (1 - 0.81 / 0.999))
"""Of the platforms' Adam: at most so many learning rates in one step (7.27)."""
_ROUNDING = 1.001
"""Adam computes in float32."""


def largest_change(settings: Settings) -> float:
    """The most that one round of local training can move any parameter.

    >>> from shared.base.settings import Settings
    >>> round(largest_change(Settings()), 3)  # 8 steps at 0.005
    0.291
    """
    training = settings.training
    return training.local_steps * training.learning_rate * ADAM * _ROUNDING
