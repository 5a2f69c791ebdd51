"""Which platforms can be in one secure sum: the largest set of those that all know each other, and what keeps the others out.

That is a largest clique. The graph of who knows whom is nearly complete in practice, so the search is over the pairs that do
*not* know each other, of which one has to go (a least vertex cover): few choices, however many platforms there are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from shared.secagg.roster import NAME
from shared.secagg.trust_statement import TrustStatement, trusted_digest

STEPS = 20_000
"""Choices that the search looks at; beyond them the best set so far is taken, which greedy choices alone make good."""
_SHOWN = 5
"""Platforms that a sentence names."""


@dataclass(frozen=True, kw_only=True)
class UntrustedPlatform:
    """A platform that is not in the sum, and between whom an introduction is missing.

    Args:
        unknown_to: Platforms of the sum that do not know it.
        strangers: Platforms of the sum that it does not know.
    """

    tag: ClassVar[int] = 53

    platform: str
    unknown_to: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(NAME.fullmatch(name) for name in (self.platform, *self.unknown_to, *self.strangers))

    def __str__(self) -> str:
        """Why, and who has to do what."""
        said = []
        if self.unknown_to:
            several = len(self.unknown_to) > 1
            where = "on each of these platforms" if several else "there"
            do = "do" if several else "does"
            said.append(f"{_named(self.unknown_to)} {do} not know `{self.platform}`: run `fedfuse client trust` {where}")
        if self.strangers:
            said.append(
                f"`{self.platform}` does not know {_named(self.strangers)}: run `fedfuse client trust` on {self.platform}"
            )
        return "; ".join(said)


def largest_trusting(
    weights: Mapping[str, int], unknown: Mapping[str, Collection[str]]
) -> tuple[tuple[str, ...], tuple[UntrustedPlatform, ...]]:
    """The largest set of platforms of which each knows each other one; and for each of the others, what is missing.

    Args:
        weights: Platform -> its declared users, which decide between sets of one size.
        unknown: Platform -> those of the others that it does not know.

    Returns:
        Names of the set, sorted; and the others, by name.

    >>> largest_trusting({"a": 9, "b": 9, "c": 9}, {"a": ["c"], "b": ["c"]})[0]
    ('a', 'b')
    """
    apart: dict[str, set[str]] = {name: set() for name in sorted(weights)}
    for name, strangers in unknown.items():
        for other in strangers:
            apart[name].add(other)
            apart[other].add(name)
    gone = _cover(apart, weights)
    taken = tuple(name for name in apart if name not in gone)
    left = [
        UntrustedPlatform(
            platform=name,
            unknown_to=tuple(other for other in taken if name in unknown.get(other, ())),
            strangers=tuple(other for other in taken if other in unknown.get(name, ())),
        )
        for name in sorted(gone)
    ]
    return taken, tuple(left)


def trusting_platforms(
    users: Mapping[str, int], stated: Mapping[str, TrustStatement], identities: Mapping[str, bytes], *, run: str
) -> tuple[tuple[str, ...], tuple[UntrustedPlatform, ...]]:
    """The largest set of platforms that know each other by their own signed word; and the others, with what is missing.

    Args:
        users: Platform -> its declared users.
        stated: Platform -> its statement of this run, checked; who states nothing knows everybody.
        identities: Platform -> its identity.

    Returns:
        As `largest_trusting`.
    """
    digests = {trusted_digest(name, key, run=run): name for name, key in identities.items()}
    unknown = {name: {digests[digest] for digest in digests.keys() - said.known} - {name} for name, said in stated.items()}
    return largest_trusting(users, unknown)


def _cover(apart: Mapping[str, set[str]], weights: Mapping[str, int]) -> frozenset[str]:
    """The fewest platforms, of these the lightest, without which no pair that is apart is left."""
    best = _greedy(apart, weights)
    # Depth first, the promising choice last on the stack: (pairs that are left, who has gone).
    stack = [({name: others for name, others in apart.items() if others}, frozenset[str]())]
    for _ in range(STEPS):
        if not stack:
            break
        left, gone = stack.pop()
        if _cost(gone, weights) >= _cost(best, weights) or len(gone) + _matching(left) > len(best):
            continue
        if not left:
            best = gone
            continue
        worst = _worst(left, weights)
        stack.append((_without(left, left[worst]), gone | left[worst]))
        stack.append((_without(left, {worst}), gone | {worst}))
    return best


def _greedy(apart: Mapping[str, set[str]], weights: Mapping[str, int]) -> frozenset[str]:
    left, gone = {name: others for name, others in apart.items() if others}, frozenset[str]()
    while left:
        worst = _worst(left, weights)
        left, gone = _without(left, {worst}), gone | {worst}
    return gone


def _worst(left: Mapping[str, set[str]], weights: Mapping[str, int]) -> str:
    """Who is apart from most; of these the one with fewest users, and the last by name."""
    return max(left, key=lambda name: (len(left[name]), -weights[name], name))


def _without(left: Mapping[str, set[str]], gone: set[str]) -> dict[str, set[str]]:
    kept = {name: others - gone for name, others in left.items() if name not in gone}
    return {name: others for name, others in kept.items() if others}


def _matching(left: Mapping[str, set[str]]) -> int:
    """Pairs without a platform in common: of each, one has to go."""
    used: set[str] = set()
    for name, others in left.items():
        free = others - used
        if name not in used and free:
            used |= {name, min(free)}
    return len(used) // 2


def _cost(gone: frozenset[str], weights: Mapping[str, int]) -> tuple[int, int, Sequence[str]]:
    # The last part only makes the choice the same every time.
    return len(gone), sum(weights[name] for name in gone), sorted(gone, reverse=True)


def _named(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names[:_SHOWN]] + ([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])
    return ", ".join(shown[:-1]) + f" and {shown[-1]}" if len(shown) > 1 else shown[0]
