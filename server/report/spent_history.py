"""What a ledger tells besides its sum: how epsilon grew, round by round, and which charges paid for answers that left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from server.report.report_model import SpentHistory, SpentPoint
from shared.ledger.audit import AuditReport
from shared.ledger.format import Entry, IntegerEntry, Line, ReleaseRecord
from shared.ledger.summary import LedgerSummary
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind

MOST_POINTS = 200
_HELD = 4096
_OPEN = 1024
"""Charges that wait for their answer, at most; a platform has one or two."""

Value = TypeVar("Value")


class HistoryTaker:
    """Takes every line of a ledger; keeps the epsilon of each round, in bounded memory."""

    def __init__(self) -> None:
        # Every so many rounds' points from the first on, and the newest round's.
        self._points: list[SpentPoint] = []
        self._stride, self._newest = 1, -1
        self._open: dict[str, Release] = {}
        self.left: Counter[Release] = Counter()
        """One step of a mechanism -> answers that left, paid by its charges."""

    def take(self, line: Line) -> None:
        """One more line."""
        if isinstance(line, ReleaseRecord) and line.charge in self._open:
            self.left[self._open.pop(line.charge)] += 1
        if not isinstance(line, Entry):
            return
        if len(self._open) >= _OPEN:
            del self._open[next(iter(self._open))]
        integers = line.integers if isinstance(line, IntegerEntry) else None
        self._open[line.hash] = _one_step(line.kind, line.noise_multiplier, line.sample_rate, line.group_size, integers)
        point = SpentPoint(run=line.run, round=line.round, epsilon=line.epsilon)
        if self._points and (self._points[-1].run, self._points[-1].round) == (point.run, point.round):
            self._points[-1] = point
            return
        if self._newest % self._stride:
            self._points[-1] = point  # the one before was there as the newest alone
        else:
            self._points.append(point)
        self._newest += 1
        if len(self._points) > _HELD:
            self._points, self._stride = self._points[::2], 2 * self._stride  # of an odd number: the newest stays

    @property
    def points(self) -> tuple[SpentPoint, ...]:
        """At most `MOST_POINTS`, evenly chosen, the first and the last among them."""
        return tuple(thinned(self._points, MOST_POINTS))


def thinned(values: list[Value], most: int) -> list[Value]:
    """At most `most` of the values, evenly chosen, the first and the last among them.

    >>> thinned(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


@dataclass(frozen=True, kw_only=True)
class LedgerStory:
    """One ledger's sum, its history, and what left.

    Args:
        left: One step of a mechanism -> answers that left, paid by its charges.
    """

    summary: LedgerSummary
    history: SpentHistory
    left: Counter[Release]


def ledger_stories(audit: AuditReport, takers: Iterable[HistoryTaker]) -> list[LedgerStory]:
    """What each audited ledger tells; without those that cannot be read, which the audit says.

    Args:
        takers: Called with the lines of each ledger by the audit, in its order.
    """
    return [
        LedgerStory(
            summary=summary,
            history=SpentHistory(platform=summary.header.platform, points=taker.points),
            left=taker.left,
        )
        for summary, taker in zip(audit.summaries, takers, strict=True)
        if summary is not None
    ]


@lru_cache(maxsize=256)
def _one_step(kind: ReleaseKind, noise: float, rate: float, group: int, integers: Integers | None) -> Release:
    return Release(kind=kind, noise_multiplier=noise, sample_rate=rate, group_size=group, integers=integers)
