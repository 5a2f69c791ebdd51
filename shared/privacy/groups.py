"""One user, several examples: what group size means, and what it costs.

Let D hold the user and D' not. In a release of group size g at most g examples differ: the user's
own, present in D alone, and at most g - 1 examples of other users, present in both with different
content. Let D0 be the data without all g of them. Then

- D -> D0 *removes* g examples, and
- D0 -> D' *adds* g - 1 examples (the others', now without the user's influence),

and each of the two is plain group privacy of a Poisson-sampled sum.

**m examples removed or added.** Given the sampling of everything else, the two outputs are
N(c, z² I) and N(c + sum of the sampled vectors, z² I); the number sampled is Binomial(m, q) and
their sum has norm at most their number. By Choquette-Choo, Ganesh, Steinke and Thakurta 2024,
"Privacy amplification for matrix mechanisms" (Corollary 4.7: a mixture of Gaussians with vector
sensitivities is dominated by the scalar one with their norms; and larger sensitivities dominate
smaller ones), the scalar mixture with sensitivities k of probability Binomial(m, q)(k) against
N(0, z²) dominates, and it is attained (all vectors equal), so it is exact. `pld` uses it.

**The coarse pair.** Push all of P(k >= 1) = 1 - (1 - q)^m onto k = m. Writing the mixture as
(1 - h) A + h B with A = N(0, z²) and h = 1 - (1 - q)^m, the hockey-stick divergence of order
e^a from A is h times that of B at order 1 + (e^a - 1) / h (advanced joint convexity: Balle, Barthe
and Gaboardi 2018, "Privacy amplification by subsampling", Theorem 2), which is convex in B, and
among shifts of norm at most m is greatest at N(m, z²). So the ordinary Poisson-sampled Gaussian
with rate h and noise multiplier z / m dominates in the removal direction at every order, and hence
also in the addition direction (H_a(Q || P) = 1 - a + a H_{1/a}(P || Q)). `rdp` and `prv` use it,
which know that one mechanism only. For m = 1 both pairs are the plain one.

**Composition.** Dominating pairs compose adaptively (Zhu, Dong and Wang 2022, Theorem 10), with D0
chosen for each release apart, so all releases compose within each of the two steps whatever their
group sizes.

**The triangle.** If every event has P_D <= e^e1 P_D0 + d1 and P_D0 <= e^e2 P_D' + d2, then
P_D <= e^(e1 + e2) P_D' + d1 + e^e1 d2: an ordered pair (D, D') costs (e1 + e2, d1 + e^e1 d2). The
reverse pair is another claim, P_D' <= e^(e1 + e2) P_D + d2 + e^e2 d1, and may split delta anew.
Each order spends half of delta on its first step and delta / 2 e^-(first epsilon) on its second;
epsilon is the larger of the two sums. (Vadhan 2017, "The complexity of differential privacy",
Lemma 2.2, is the case of equal steps.)

**Several people.** Let D hold n users and D' none of them. Each touches at most g examples, so that at most n g differ, of
which the users' own do not come back: D -> D0 removes n g examples, D0 -> D' adds n (g - 1). With g = 1 nothing comes back, and
there is no triangle to pay for. (n users as *one* user of group n g would pay for it.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from shared.privacy.integers import Integers
from shared.privacy.releases import Steps


@dataclass(frozen=True, kw_only=True)
class Removal:
    """`steps` Poisson-sampled Gaussian sums from which `examples` examples are removed (or added).

    With `integers`, rounded sums with integer noise instead (see `discrete`).
    """

    noise_multiplier: float
    sample_rate: float
    examples: int
    steps: int
    integers: Integers | None = None

    @property
    def coarse(self) -> tuple[float, float]:
        """(noise multiplier, sample rate) of the ordinary sampled Gaussian that dominates this one.

        >>> Removal(noise_multiplier=3.0, sample_rate=0.1, examples=1, steps=1).coarse
        (3.0, 0.1)
        >>> noise, rate = Removal(noise_multiplier=3.0, sample_rate=0.1, examples=3, steps=1).coarse
        >>> round(noise, 6), round(rate, 6)
        (1.0, 0.271)
        """
        if self.examples == 1:
            return self.noise_multiplier, self.sample_rate  # exactly, with no rounding
        if self.sample_rate == 1:
            return self.noise_multiplier / self.examples, 1.0
        return self.noise_multiplier / self.examples, -math.expm1(self.examples * math.log1p(-self.sample_rate))


Curve = Callable[[float], float]
"""delta -> an epsilon for which the pair is (epsilon, delta)-indistinguishable in both directions."""


class CannotCompose(Exception):
    """A numerical method does not reach these values; another bound has to be used."""


def removals(merged: tuple[Steps, ...], people: int = 1) -> tuple[Removal, ...]:
    """The step D -> D0: every affected example of so many people is removed."""
    return tuple(_removal(s, s.group_size * people) for s in merged)


def additions(merged: tuple[Steps, ...], people: int = 1) -> tuple[Removal, ...]:
    """The step D0 -> D': the other users' examples come back; empty when every group is 1, of however many people."""
    return tuple(_removal(s, (s.group_size - 1) * people) for s in merged if s.group_size > 1)


def triangle(removal: Curve, addition: Curve, delta: float) -> float:
    """Epsilon at `delta` of D against D', both ways, through D0.

    >>> triangle(lambda delta: 1.0, lambda delta: 0.5, 1e-5)
    1.5
    """
    return max(_through(removal, addition, delta), _through(addition, removal, delta))


def _through(first: Curve, second: Curve, delta: float) -> float:
    one = first(delta / 2)
    # d1 + e^e1 d2 = delta / 2 + e^e1 (delta / 2) e^-e1 = delta.
    rest = delta / 2 * math.exp(-one)
    return one + second(rest) if rest > 0 else math.inf


def _removal(steps: Steps, examples: int) -> Removal:
    return Removal(
        noise_multiplier=steps.noise_multiplier,
        sample_rate=steps.sample_rate,
        examples=examples,
        steps=steps.steps,
        integers=steps.integers,
    )
