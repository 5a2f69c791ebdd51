"""Combiners that one faulty or lying platform cannot steer: coordinate median, trimmed mean, multi-Krum.

They compare updates with each other, so they hold all of a round's updates at once (the mean and the secure sum hold one):
n updates of D float32 numbers, 4 n D bytes, and one update more while they work. They do not weigh by declared users: a
weight that a platform declares itself is a lever.

Each states a bound: with at most f faulty platforms among n, whatever those send, the combined change lies in a set that
the honest updates alone determine. `tests/strategies/test_robust.py` plays the faulty platforms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.model.adapter import Layout
from shared.protocol.messages import Arrays
from strategies.averaging import Change
from strategies.strategy_card import Card, Role

Stacked = NDArray[np.float32]
"""(n, rows, columns): one tensor of every update."""


class Robust(ABC):
    """Keeps every update of a round, then combines them.

    Args:
        faulty: f, the number of platforms that may send anything at all.
    """

    card: ClassVar[Card]

    def __init__(self, layout: Layout, *, faulty: int) -> None:
        self._names, self._faulty = list(layout), faulty
        self._updates: list[dict[str, NDArray[np.float32]]] = []

    @staticmethod
    @abstractmethod
    def least(faulty: int) -> int:
        """Updates without which the bound does not hold."""

    @abstractmethod
    def combine(self, stacked: Stacked) -> NDArray[np.float64]:
        """One tensor's combined change."""

    def add(self, change: Arrays, *, weight: int) -> None:
        """Keep one update; its weight has no say."""
        self._updates.append({name: change[name] for name in self._names})

    def change(self) -> Change:
        """The combined change of the updates, which do not depend on their order."""
        return {name: self.combine(np.stack([update[name] for update in self._updates])) for name in self._names}


class Median(Robust):
    """The median of every coordinate (Yin et al. 2018).

    Guarantees:
        With f < n / 2, every coordinate lies between the least and the greatest honest value of that coordinate: more
        than half of the values are honest, so an honest one lies on either side of the median, or at it.
    """

    card: ClassVar[Card] = Card(
        name="median",
        role=Role.COMBINING,
        when="under half of the platforms may be faulty; noisier than a mean, blind to declared users",
        trusts="more than half of the platforms; the coordinator with each one's update",
        sends="what the updates send",
    )

    @staticmethod
    def least(faulty: int) -> int:
        """More honest ones than faulty ones."""
        return 2 * faulty + 1

    def combine(self, stacked: Stacked) -> NDArray[np.float64]:
        """The middle value, or the mean of the two in the middle."""
        return np.median(stacked.astype(np.float64), axis=0)


class Trimmed(Robust):
    """The mean of every coordinate without its f least and f greatest values (Yin et al. 2018).

    Guarantees:
        With at most f faulty, every coordinate lies between the least and the greatest honest value of that coordinate: a
        faulty value that is kept has an honest one at or beyond it on either side, since f of each were cut.
    """

    card: ClassVar[Card] = Card(
        name="trimmed",
        role=Role.COMBINING,
        when="at most server.faulty platforms may be faulty; nearer to the mean than median, blind to declared users",
        trusts="all but server.faulty platforms; the coordinator with each one's update",
        sends="what the updates send",
    )

    @staticmethod
    def least(faulty: int) -> int:
        """Something must be left."""
        return 2 * faulty + 1

    def combine(self, stacked: Stacked) -> NDArray[np.float64]:
        """The mean of the middle n - 2 f values."""
        ordered = np.sort(stacked, axis=0)
        middle: NDArray[np.float64] = ordered[self._faulty : len(ordered) - self._faulty].mean(axis=0, dtype=np.float64)
        return middle


class Krum(Robust):
    """Multi-Krum (Blanchard et al. 2017): the mean of the n - f updates that lie closest to the others.

    An update's score is the sum of its squared distances to its n - f - 2 nearest others, over all tensors together.

    Guarantees:
        With at most f faulty and n >= 2 f + 3, the combined change is within D sqrt((n - f - 2) / (n - 2 f - 1)) of the
        convex hull of the honest updates, D their greatest distance from each other. Proof: an honest update has at least
        n - f - 1 honest others, so its score is at most (n - f - 2) D^2; there are at least n - f honest ones, so each of
        the n - f lowest scores is at most that. Of the n - f - 2 neighbours of a chosen faulty update at most f - 1 are
        faulty, so at least n - 2 f - 1 are honest, and the nearest honest one is within (n - f - 2) D^2 / (n - 2 f - 1),
        squared. The mean of points that are so close to a convex set is so close to it.
    """

    card: ClassVar[Card] = Card(
        name="krum",
        role=Role.COMBINING,
        when="whole updates may be faulty (server.faulty of 5 or more): drops them whole, blind to declared users",
        trusts="all but server.faulty platforms; the coordinator with each one's update",
        sends="what the updates send",
    )

    @staticmethod
    def least(faulty: int) -> int:
        """As the proof needs."""
        return 2 * faulty + 3

    def combine(self, stacked: Stacked) -> NDArray[np.float64]:
        """The mean of the chosen ones, in float64."""
        chosen: NDArray[np.float64] = stacked.mean(axis=0, dtype=np.float64)
        return chosen

    def change(self) -> Change:
        """Choose over all tensors together, then take the mean of each."""
        squared = self._distances()
        count = len(self._updates)
        others = np.sort(squared, axis=1)[:, 1 : count - self._faulty - 1]  # the nearest is the update itself
        # Ties fall to the update of smaller norm, so that the order of arrival says nothing.
        norms = np.array(
            [sum(float(np.square(part, dtype=np.float64).sum()) for part in update.values()) for update in self._updates]
        )
        best = np.lexsort((norms, others.sum(axis=1)))[: count - self._faulty]
        return {name: self.combine(np.stack([self._updates[at][name] for at in best])) for name in self._names}

    def _distances(self) -> NDArray[np.float64]:
        """Squared distances of all pairs, float64 (n, n): differences, not norms and products, which cancel."""
        count = len(self._updates)
        squared = np.zeros((count, count))
        for one in range(count):
            for other in range(one):
                gap = sum(
                    float(np.square(self._updates[one][name].astype(np.float64) - self._updates[other][name]).sum())
                    for name in self._names
                )
                squared[one, other] = squared[other, one] = gap
        return squared
