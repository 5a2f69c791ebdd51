"""How far rounding can carry two neighbouring vectors apart.

**Randomised rounding.** x becomes floor(x + u) with u uniform in [0, 1), independently in each coordinate.

**What it does to a sensitivity.** Let x and x + v be the scaled sums of two neighbouring data sets, ||v||_2 <= r, and
round both with the same u: that is a coupling, and each of the two is rounded rightly. Then a user's presence shifts
the integers by D = floor(x + v + u) - floor(x + u). With u' = x + u - floor(x + u), which is again uniform and again
independent over coordinates, D_j = floor(v_j + u'_j): a randomised rounding of v itself. With k = floor(v_j) and
p = v_j - k, D_j is k + 1 with probability p and k otherwise. So

1. E D_j^2 = v_j^2 + p (1 - p), and E ||D||^2 <= r^2 + d/4.
2. D_j^2 has two values, |2k + 1| apart, and |2k + 1| = |2 v_j + 1 - 2p| <= 2 |v_j| + 1. By the triangle inequality in
   L2 the ranges have norm at most 2 r + sqrt(d).
3. Hoeffding 1963, Theorem 2: P(||D||^2 >= E ||D||^2 + t) <= exp(-2 t^2 / (2 r + sqrt(d))^2), which is beta at
   t = sqrt(2 log(1/beta)) (r + sqrt(d)/2).
4. Always ||D - v|| <= sqrt(d), hence ||D|| <= r + sqrt(d).

Steps 1 to 4 are Kairouz, Liu and Steinke 2021, "The distributed discrete Gaussian mechanism for federated learning with
secure aggregation", Theorem 1 and Lemma 28, here for the *difference* of two roundings, so that no vector is ever
rounded again until its norm is small (their conditional rounding), which would need the private vector's norm.

**What follows for the mechanism.** Publish u as well: that can only help an attacker, so a bound for it is a bound for
us. Given u, the mechanism adds noise to integers that a user shifts by D(u).
"""

from __future__ import annotations

import math

from shared.base.errors import InputError


def rounded_norm(norm: float, *, dimension: float, failure: float) -> float:
    """L2 bound of the integer shift that a real shift of L2 norm at most `norm` becomes by randomised rounding.

    Args:
        norm: r, in steps of the integer grid, >= 0.
        dimension: d, coordinates; those of a finer grid count for less (`Integers.norm`).
        failure: beta, in [0, 1): probability, over the rounding, that the bound does not hold. 0 asks for the bound
            that always holds.

    >>> round(rounded_norm(1000.0, dimension=40_000, failure=2.0**-40), 1)
    1009.1
    >>> rounded_norm(1000.0, dimension=40_000, failure=0.0)
    1200.0
    """
    if not (math.isfinite(norm) and norm >= 0 and dimension >= 1 and 0 <= failure < 1):
        raise InputError(
            f"norm {norm!r}, dimension {dimension!r}, failure {failure!r}",
            where="the norm of a rounded vector",
            do="norm must be finite and at least 0, dimension at least 1, failure at least 0 and below 1",
        )
    always = norm + math.sqrt(dimension)
    if failure == 0:
        return always
    usual = norm**2 + dimension / 4 + math.sqrt(2 * math.log(1 / failure)) * (norm + math.sqrt(dimension) / 2)
    return min(always, math.sqrt(usual))
