"""How many must be there, who must not be trusted, and who is whose neighbour: the numbers of one run.

Up to `COMPLETE` platforms everyone masks with everyone. Above that the platforms form a ring in an order that nobody
chose, and each masks with the k/2 next on either side (Bell et al. 2020, "Secure single-server aggregation with
(poly)logarithmic overhead", section 3). The security of both is argued in `shared.secagg.security_argument`; it needs no luck.
Only
*liveness* on the ring is a matter of chance: when n - t platforms chosen without regard to the ring's order are gone, some
neighbourhood has too few left with probability at most 2**-30, and then the round is given up, not the secret.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from shared.base.errors import InputError

COMPLETE = 50
"""Most platforms that all mask with one another."""
MOST = 10_000
"""Most platforms of one run."""
RISK = 2.0**-30
"""Chance of a neighbourhood below its threshold, over a round in which n - t platforms are gone by chance."""


@dataclass(frozen=True, kw_only=True)
class Quorum:
    """The numbers of one run.

    Args:
        members: n, platforms on the roster.
        threshold: t, fewest survivors of a round.
        votes: q, platforms that must agree on a session, or sign a list of survivors, before anyone acts on it.
        colluders: c, most platforms that may tell the server all they know.
        degree: k, neighbours of a platform; n - 1 where everyone is everyone's.
        shares: t', shares that give a secret back; a secret has one holder per neighbour, and its owner.

    Guarantees (checked where it is made, used by the argument in `shared.secagg.security_argument`):
        2 q > n + c and q <= t; 2 t' > k + 1 + c; and k = n - 1, or k > n - t + c with k even.
    """

    members: int
    threshold: int
    votes: int
    colluders: int
    degree: int
    shares: int

    def __post_init__(self) -> None:
        n, t, q, c, k = self.members, self.threshold, self.votes, self.colluders, self.degree
        ring = k % 2 == 0 and n - t + c < k < n - 1
        if not (
            1 <= n <= MOST
            and 0 <= c < n
            and n + c < 2 * q <= 2 * t <= 2 * n
            and (k == n - 1 or ring)
            and k + 1 + c < 2 * self.shares <= 2 * (k + 1)
        ):
            raise InputError(f"{self} cannot keep its promise", do="see the conditions in shared/secagg")

    @property
    def honest(self) -> int:
        """Fewest honest platforms in any sum that the server can learn: t - c, at least 1.

        >>> quorum_of(24, threshold=0.8, colluders=1).honest
        19
        """
        return self.threshold - self.colluders

    @property
    def complete(self) -> bool:
        """Whether everyone is everyone's neighbour."""
        return self.degree == self.members - 1


@cache
def quorum_of(members: int, *, threshold: float, colluders: int, least: int = 1) -> Quorum:
    """The numbers for so many platforms.

    Args:
        threshold: Wanted t / n, in (0, 1]; t is larger where the colluders or `least` ask for it.
        colluders: Most platforms that may collude with the server; a platform alone has none.
        least: Fewest platforms that a sum may be of.

    Raises:
        InputError: a value is out of its range, or there are fewer platforms than the least.

    >>> quorum_of(3, threshold=0.6, colluders=0)
    Quorum(members=3, threshold=2, votes=2, colluders=0, degree=2, shares=2)
    >>> quorum_of(200, threshold=0.8, colluders=5)
    Quorum(members=200, threshold=160, votes=103, colluders=5, degree=74, shares=41)
    """
    if not 1 <= members <= MOST:
        raise InputError(f"{members} platforms", where="the secure sum", do=f"between 1 and {MOST}")
    if not 0 < threshold <= 1 or colluders < 0:
        raise InputError(
            f"threshold {threshold} and {colluders} colluders",
            where="the secure sum",
            do="threshold in (0, 1], colluders at least 0",
        )
    if members < least:
        raise InputError(f"{members} platforms, and a sum is to be of {least} at least", where="the secure sum")
    n, c = members, min(colluders, members - 1)
    q = (n + c) // 2 + 1
    t = max(math.ceil(threshold * n - 1e-9), q, least)
    if n > COMPLETE:
        for k in range(max(2, n - t + c + 1) // 2 * 2, n - 1, 2):
            shares = (k + 1 + c) // 2 + 1
            if k > n - t + c and shares <= k + 1 and n * _beyond(n - 1, n - t, k, k - shares) <= RISK:
                return Quorum(members=n, threshold=t, votes=q, colluders=c, degree=k, shares=shares)
    return Quorum(members=n, threshold=t, votes=q, colluders=c, degree=n - 1, shares=t)


def _beyond(population: int, gone: int, drawn: int, allowed: int) -> float:
    """Chance that more than `allowed` of `drawn` members are among the `gone` of a population (hypergeometric, exact)."""
    if allowed < 0:
        return 1.0
    ways = sum(
        math.comb(gone, bad) * math.comb(population - gone, drawn - bad) for bad in range(allowed + 1, min(gone, drawn) + 1)
    )
    return ways / math.comb(population, drawn)
