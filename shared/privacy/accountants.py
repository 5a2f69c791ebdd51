"""Accountants: from a list of releases to the epsilon that one user has at most spent.

Platforms plan and record with our own composition (`prv`, `rdp`); two independent libraries, Opacus and dp-accounting, read the
same releases, so that an auditor can hold one against the other. Every figure is an upper bound; where a tight method does not
reach, a looser one takes over and `Spent.accountant` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from shared.base.errors import InputError
from shared.privacy import discrete_sum, opacus_reference, prv, rdp
from shared.privacy.groups import CannotCompose, Removal, additions, removals, triangle
from shared.privacy.releases import Release, Steps, merge_releases
from shared.privacy.spent import Method, Spent

TIGHT = 0.02
"""Part of an epsilon that a tight bound is above the truth, at most."""

PRV_LIMIT = 10.0
"""Epsilon above which PRV grids are not trusted (opacus#604, prv_accountant#36)."""


class Accountant(Protocol):
    """Interprets releases. Stateless: the past is the list it is given."""

    @property
    def name(self) -> str:
        """Of the method."""
        ...

    def epsilon(self, releases: Sequence[Release], delta: float) -> Spent:
        """Bound on epsilon at `delta` of all `releases` together, for one user added or removed.

        Raises:
            InputError: delta is not in (0, 1).
        """
        ...


_Bound = Callable[[tuple[Removal, ...], float], Spent]


@dataclass(frozen=True)
class MethodAccountant:
    """One way of bounding a composition.

    Args:
        name: Of the method.
        bound: Of the removals of releases, at a delta.
    """

    name: str
    bound: _Bound = field(repr=False)

    def epsilon(self, releases: Sequence[Release], delta: float, *, people: int = 1) -> Spent:
        """See `Accountant.epsilon`; of so many users who are all there, or none of them."""
        return _interpret(self.bound, merge_releases(releases), _checked(delta), people)


class PreferredAccountant:
    """The numerical composition where a user is one example, dp-accounting where a user touches several.

    The former knows only the plain sampled Gaussian; its bound for a group of three is more than twice
    the exact one, which would be paid in noise.
    """

    name = "preferred"

    def epsilon(self, releases: Sequence[Release], delta: float) -> Spent:
        """See `Accountant.epsilon`."""
        grouped = any(release.group_size > 1 for release in releases)
        return (DP_ACCOUNTING if grouped else NUMERICAL).epsilon(releases, delta)


def family(method: Method) -> Accountant:
    """The library that recomputes figures of this method for an audit.

    >>> family(Method.OPACUS_RDP).name, family(Method.DP_ACCOUNTING_PLD).name
    ('opacus', 'dp-accounting')
    """
    return DP_ACCOUNTING if method in (Method.DP_ACCOUNTING_PLD, Method.DP_ACCOUNTING_RDP) else OPACUS


def _checked(delta: float) -> float:
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        raise InputError(f"delta is {delta!r}", where="privacy accounting", do="delta must be above 0 and below 1")
    return float(delta)


@lru_cache(maxsize=1024)
def _interpret(method: _Bound, merged: tuple[Steps, ...], delta: float, people: int) -> Spent:
    if not merged:
        return Spent(epsilon=0.0, accountant=Method.NONE)
    if any(steps.noise_multiplier == 0 for steps in merged):
        return Spent(epsilon=math.inf, accountant=Method.NONE)
    out, back = removals(merged, people), additions(merged, people)
    parts: list[Spent] = []

    def through(removed: tuple[Removal, ...]) -> Callable[[float], float]:
        ideal = discrete_sum.gaussian(removed)

        def curve(at: float) -> float:
            if ideal is None:
                return math.inf
            parts.append(method(ideal, at))
            return parts[-1].epsilon

        return lambda at: discrete_sum.integer_epsilon(removed, at, curve)

    total = triangle(through(out), through(back), delta) if back else through(out)(delta)
    if not parts:
        return Spent(epsilon=math.inf, accountant=Method.NONE)
    loosest = next((part for part in parts if not part.tight), parts[0])
    return Spent(epsilon=total, accountant=loosest.accountant, tight=loosest.tight)


def _opacus_rdp(removed: tuple[Removal, ...], delta: float) -> Spent:
    epsilon = opacus_reference.opacus_rdp_epsilon(removed, delta)
    return Spent(epsilon=epsilon, accountant=Method.OPACUS_RDP, tight=False)


def _opacus(removed: tuple[Removal, ...], delta: float) -> Spent:
    bound = _opacus_rdp(removed, delta)
    return _composed(removed, delta, bound=bound, method=Method.OPACUS_PRV, compose=opacus_reference.opacus_composed)


def _numerical(removed: tuple[Removal, ...], delta: float) -> Spent:
    bound = Spent(epsilon=rdp.rdp_epsilon(removed, delta), accountant=Method.RDP, tight=False)
    return _composed(removed, delta, bound=bound, method=Method.PRV, compose=prv.compose_losses)


def _composed(removed: tuple[Removal, ...], delta: float, *, bound: Spent, method: Method, compose: prv.LossComposer) -> Spent:
    # Rényi is at most about a fifth above PRV where PRV is trusted; beyond that, do not even try: it may hang.
    if bound.epsilon > 2 * PRV_LIMIT:
        return bound
    try:
        found = prv.prv_epsilon(removed, delta, rough=bound.epsilon, compose=compose)
    except CannotCompose:
        return bound
    if found.epsilon > PRV_LIMIT:
        return bound
    if found.epsilon > bound.epsilon:
        return bound  # both are upper bounds: for very small epsilons PRV's error may be the larger part
    # The estimate is off by the error at most, and lifted by it. Of very many steps of little epsilon that is a large part.
    close = 2 * found.error <= TIGHT * found.epsilon
    tight = close and all(removal.examples == 1 for removal in removed)
    return Spent(epsilon=found.epsilon, accountant=method, tight=tight)


def _dp_accounting(removed: tuple[Removal, ...], delta: float) -> Spent:
    from shared.privacy import pld  # a second and a half of imports, which plans without groups do not need

    try:
        return Spent(epsilon=pld.pld_epsilon(removed, delta), accountant=Method.DP_ACCOUNTING_PLD)
    except CannotCompose:
        return Spent(epsilon=pld.renyi(removed, delta), accountant=Method.DP_ACCOUNTING_RDP, tight=False)


NUMERICAL = MethodAccountant("numerical", _numerical)
"""Our numerical composition in both directions, and our Rényi curves where it does not reach; neither Opacus nor torch.

Groups use the coarse pair of `groups`, so they cost more here and in `OPACUS` than the truth: prefer `DP_ACCOUNTING` for them.
"""
OPACUS = MethodAccountant("opacus", _opacus)
"""Opacus' PRV in both directions, and its RDP where PRV does not reach."""
DP_ACCOUNTING = MethodAccountant("dp-accounting", _dp_accounting)
"""Google's dp-accounting: privacy loss distributions, with exact mixtures for groups."""
RENYI = MethodAccountant("opacus-rdp", _opacus_rdp)
"""Opacus' RDP alone: a quick, valid bound some per cent above the tight ones."""
PREFERRED = PreferredAccountant()
