"""The integer sum that a secure sum releases - rounded, noised in shares, sampled - held against a Gaussian mechanism.

**What is released.** In a step every user of a platform is sampled with probability q. The clipped vectors of the
sampled are summed, scaled, boxed and rounded by chance (`shared/secagg/fixed_point.py`), and every platform adds a share of
integer noise: discrete Gaussians N_Z(0, sigma^2 / h), of mass proportional to e^(-k^2 h / 2 sigma^2) at every whole k. The
server and the platforms that collude with it know and subtract the colluders' shares. Of the honest survivors, at least h,
they see only the sum modulo 2^b. More than h honest shares are independent noise on top, and the modulus is a function
of the sum: both are post-processing. So it is enough to bound the sum of the integers and h shares.

**Theta.** For real x and s > 0, by Poisson summation,

    sum over whole k of e^(-(k-x)^2 / 2s^2) = s sqrt(2 pi) (1 + 2 sum_j>=1 e^(-2 pi^2 s^2 j^2) cos(2 pi j x)),

so it is s sqrt(2 pi) up to a factor in [1 - eta, 1 + eta], eta(s) < 2.001 e^(-2 pi^2 s^2). For s = 2, eta < 2^-112.

**Shares sum to one discrete Gaussian.** The mass of N_Z(0, a) + N_Z(0, b) at k is proportional to e^(-k^2 / 2(a+b)) times a
theta sum with s^2 = ab / (a+b). So it is N_Z(0, a + b) up to a factor between (1 - eta)/(1 + eta) and its inverse.
If every share has a variance of at least 8, s^2 is at least 4 at every further share, and h shares are N_Z(0, sigma^2) up to
e^(+-h 2^-110) at every k. (Kairouz, Liu and Steinke 2021, Corollary 12, is the sharper form.)

**A discrete Gaussian is a post-processed Gaussian.** Draw x from N(c, sigma^2 - 4), c whole, and then k with probability
proportional to e^(-(k-x)^2 / 8). Up to the theta sum at x, s = 2, k has the density of N(c, sigma^2), and so, up to one
theta sum more, the mass of N_Z(c, sigma^2): together within e^(+-2^-110) at every k. The second draw does not know c.

**Hence.** Publish the rounding's chance u too, which only helps an attacker. Given u, a set S of sampled examples shifts the
integers by a whole vector D_S. Up to e^(+-lambda), lambda = T d (h + 1) 2^-110 over T steps and d coordinates, the whole run is
post-processing of Poisson-sampled Gaussian sums with noise variance sigma^2 - 4 and shifts D_S. By `rounding`, a real
shift of norm |S| r becomes one of norm at most rounded_norm(|S| r) <= |S| rounded_norm(r) = |S| norm, but for probability
beta over u. So the ordinary accountants apply, groups and all, with noise multiplier sqrt(z^2 - 4 / norm^2): no Rényi
bound of an integer law, and no idealisation either.

**What that costs in epsilon and delta.**
- P(E) <= e^lambda P'(E) <= e^lambda (e^e Q'(E) + d) <= e^(e + 2 lambda) Q(E) + e^lambda d.
- Rounding. Of m examples 2^m - 1 sets may be sampled, and all keep their bound but for probability (2^m - 1) beta over
  u. Where one does not, replace the left law of the hockey-stick divergence by the right one: the pair keeps its bound,
  whatever came before, and the left law has moved by at most the chance that any of the m is sampled, m q. Over the run that is
  T m q (2^m - 1) beta in total variation, and costs as much of delta, in either direction, with no factor.
- The sampler is within tau = 2^-`SAMPLER_BITS` of its law, per coordinate and share. Both laws move by T d h tau, which costs
  (1 + e^epsilon) T d h tau of delta. Up to epsilon = `LARGEST` that is below 2^-100 for any release that can be written down,
  so that a plan and its releases cannot differ by it; a larger epsilon is infinite here.

**What stays on a platform** (`Integers.local`) is part of the same vector: on a grid `FINE` times as fine, with noise of variance
FINE^2 sigma^2 of the platform's own. In units of its noise a shift of the finer integers by D is |D| / FINE steps of the
coarser grid, which is what `Integers.norm` counts.

**A release that one platform noises by itself** is the case h = 1: one share, nobody to subtract another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.privacy.groups import Removal
from shared.privacy.integers import LEAST_SHARE, SMOOTHING

SAMPLER_BITS = 480
"""One share of one coordinate is within 2^-SAMPLER_BITS of its law in total variation (`client/privacy/discrete_gaussian.py`)."""

LARGEST = 200.0
"""Greatest epsilon that is distinguished from an infinite one."""

CLOSENESS_BITS = 100
"""h shares of one coordinate are a post-processed Gaussian up to e^(+-h 2^-CLOSENESS_BITS): 2^-110 with room for shares
that are themselves sums of up to 64 draws (a local coordinate's, which is one share: of up to 1024), and for the one share
that is counted too few."""


def gaussian(removals: Sequence[Removal]) -> tuple[Removal, ...] | None:
    """The Gaussian mechanisms of which `removals` are post-processing; None if some have too little noise for that.

    >>> from shared.privacy.integers import Integers
    >>> part = Integers(reach=1000.0, dimension=40_000, failure=2.0**-40, honest=10)
    >>> removal = Removal(noise_multiplier=1.0, sample_rate=0.1, examples=1, steps=5, integers=part)
    >>> [(round(g.noise_multiplier, 7), g.integers) for g in gaussian([removal]) or ()]
    [(0.999998, None)]
    """
    found = []
    for removal in removals:
        if removal.integers is None:
            found.append(removal)
            continue
        norm = removal.integers.norm
        if (removal.noise_multiplier * norm) ** 2 / removal.integers.honest < LEAST_SHARE:
            return None
        effective = math.sqrt(removal.noise_multiplier**2 - SMOOTHING / norm**2)
        found.append(replace(removal, noise_multiplier=effective, integers=None))
    return tuple(found)


def integer_epsilon(removals: Sequence[Removal], delta: float, convert: Callable[[float], float]) -> float:
    """Epsilon of `removals` at `delta`, given that of the mechanisms that `gaussian` names.

    Args:
        convert: delta -> epsilon of the Gaussian mechanisms; nonincreasing.

    >>> integer_epsilon([], 1e-5, lambda delta: 3.0)
    3.0
    """
    integer = [(removal, removal.integers) for removal in removals if removal.integers is not None]
    if not integer:
        return convert(delta)
    failure = sum(r.steps * min(1.0, r.examples * r.sample_rate) * (2.0**r.examples - 1) * part.failure for r, part in integer)
    shares = sum(r.steps * (part.dimension + part.local) * part.honest for r, part in integer)
    closeness, sampler = math.ldexp(float(shares), -CLOSENESS_BITS), math.ldexp(float(shares), -SAMPLER_BITS)
    rest = (delta - failure) * math.exp(-closeness)
    if rest <= 0:
        return math.inf
    spent = convert(rest)
    if spent > LARGEST:
        return math.inf
    most = spent + 1  # (1 + e^most) covers every epsilon up to it, so the result counts only if it is not above
    left = rest - sampler * (1 + math.exp(most))
    if left <= 0:
        return math.inf
    if left < rest:  # else it is below the last digit, and the answer is known
        spent = convert(left)
    return spent + 2 * closeness if spent + 2 * closeness <= most else math.inf
