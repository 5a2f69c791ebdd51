"""Geometry of the charts: bars of budgets, epsilon over rounds, gains with their intervals. No figure is in a chart alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.report.report_model import AttackView, BudgetLine, PlatformQuality, RunReport, SpentHistory, SpentPoint
from server.report.spent_history import thinned

MOST_LINES = 6
"""Lines of one chart; more cannot be told apart. The table has all."""
WIDTH, HEIGHT = 440.0, 250.0
ROC_SIZE = 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 12.0, 34.0


@dataclass(frozen=True, kw_only=True)
class BudgetBar:
    """A bar of 100 units: what is spent of a budget.

    Args:
        spent: Width, in [0, 100]; 100 where it is above the budget.
        over: Whether it is.
    """

    platform: str
    spent: float
    over: bool


@dataclass(frozen=True, kw_only=True)
class ChartLine:
    """A line: a path, and its marks.

    Args:
        platforms: Whose; several where their epsilon grew alike.
        style: Number of its colour, dash and mark.
        marks: (x, y) of its points, few enough to be told apart.
    """

    platforms: str
    style: int
    path: str
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Epsilon over rounds.

    Args:
        text: What it shows, for whoever does not see it.
        ticks_x, ticks_y: (place, label).
        left_out: Platforms that have no line.
    """

    lines: tuple[ChartLine, ...]
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    text: str
    left_out: int
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


@dataclass(frozen=True, kw_only=True)
class IntervalMark:
    """A gain with its interval on an axis of 100 units.

    Args:
        low, gain, high, zero: Places, in [0, 100].
        word: What it says: gains, loses, or neither.
    """

    platform: str
    low: float
    gain: float
    high: float
    zero: float
    word: str


@dataclass(frozen=True, kw_only=True)
class RocChart:
    """How well attackers tell members from others, on a square of `size` units.

    Args:
        lines: `platforms` are the attackers.
        text: What it shows, for whoever does not see it.
    """

    lines: tuple[ChartLine, ...]
    text: str
    size: float = ROC_SIZE


@dataclass(frozen=True, kw_only=True)
class PageCharts:
    """All charts of a page."""

    bars: dict[str, BudgetBar] = field(default_factory=dict)
    spent: LineChart | None = None
    gains: dict[str, IntervalMark] = field(default_factory=dict)
    roc: RocChart | None = None


def page_charts(report: RunReport) -> PageCharts:
    """The charts of a report; what is infinite or not known has none."""
    return PageCharts(
        bars=_bars(report.budgets),
        spent=spent_chart(report.history),
        gains=_gains(report.quality),
        roc=roc_chart(report.attack.views if report.attack else ()),
    )


def roc_chart(views: Sequence[AttackView]) -> RocChart | None:
    """The curves of attackers; None where there is none."""
    drawn = [view for view in views if len(view.roc) >= 2][:MOST_LINES]
    if not drawn:
        return None
    lines = []
    for style, view in enumerate(drawn):
        places = [(round(ROC_SIZE * false, 1), round(ROC_SIZE * (1 - true), 1)) for false, true in view.roc]
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in places)
        lines.append(ChartLine(platforms=view.attacker, style=style, path=path, marks=tuple(thinned(places[1:-1], 5))))
    areas = "; ".join(f"{view.attacker}: {view.area:.3f}" for view in drawn)
    return RocChart(
        lines=tuple(lines), text=f"Share of planted users found, by share of false alarms. Area under the curve: {areas}."
    )


def _bars(budgets: Sequence[BudgetLine]) -> dict[str, BudgetBar]:
    found = {}
    for one in budgets:
        if one.spent is None or one.budget is None or not math.isfinite(one.budget) or one.budget <= 0:
            continue
        share = one.spent / one.budget
        found[one.platform] = BudgetBar(platform=one.platform, spent=round(100 * min(share, 1.0), 2), over=share > 1)
    return found


def spent_chart(history: Sequence[SpentHistory]) -> LineChart | None:
    """Epsilon over rounds; None where no platform has two finite points."""
    drawn = [one for one in history if len([p for p in one.points if math.isfinite(p.epsilon)]) >= 2]
    if not drawn:
        return None
    alike: dict[tuple[SpentPoint, ...], list[str]] = {}
    for one in sorted(drawn, key=lambda one: (-one.points[-1].epsilon, one.platform)):
        alike.setdefault(one.points, []).append(one.platform)
    chosen_lines = list(alike.items())[:MOST_LINES]
    left_out = len(history) - sum(len(names) for _, names in chosen_lines)
    stops = list(dict.fromkeys((point.run, point.round) for points, _ in chosen_lines for point in points))
    order: dict[str, int] = {}
    for run, _ in stops:
        order.setdefault(run, len(order))
    stops.sort(key=lambda stop: (order[stop[0]], stop[1]))
    place = {stop: number for number, stop in enumerate(stops)}
    top = _ceiling(max(point.epsilon for points, _ in chosen_lines for point in points if math.isfinite(point.epsilon)))
    across, down = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def at(run: str, round_: int, epsilon: float) -> tuple[float, float]:
        x = _LEFT + across * place[run, round_] / max(1, len(stops) - 1)
        return round(x, 1), round(_TOP + down * (1 - epsilon / top), 1)

    lines = []
    for style, (points, names) in enumerate(chosen_lines):
        places = [at(p.run, p.round, p.epsilon) for p in points if math.isfinite(p.epsilon)]
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in places)
        lines.append(ChartLine(platforms=_names(names), style=style, path=path, marks=tuple(thinned(places, 8))))
    chosen = thinned(list(range(len(stops))), 8)
    many = len(order) > 1
    ends = "; ".join(f"{_names(names)} at {points[-1].epsilon:.3g}" for points, names in chosen_lines)
    return LineChart(
        lines=tuple(lines),
        ticks_x=tuple((round(_LEFT + across * n / max(1, len(stops) - 1), 1), _stop(stops[n], n, many=many)) for n in chosen),
        ticks_y=tuple((round(_TOP + down * (1 - k / 4), 1), f"{top * k / 4:g}") for k in range(5)),
        text=f"Epsilon spent over {len(stops)} charged rounds. At the end: {ends}.",
        left_out=left_out,
    )


def _gains(quality: Sequence[PlatformQuality]) -> dict[str, IntervalMark]:
    known = [one for one in quality if one.low is not None and one.gain is not None and one.high is not None]
    reach = max((abs(edge) for one in known for edge in (one.low or 0.0, one.high or 0.0)), default=0.0) or 1.0
    found = {}
    for one in known:
        low, gain, high = (round(50 + 46 * (edge or 0.0) / reach, 2) for edge in (one.low, one.gain, one.high))
        word = gain_word(one)
        found[one.platform] = IntervalMark(platform=one.platform, low=low, gain=gain, high=high, zero=50.0, word=word)
    return found


def gain_word(one: PlatformQuality) -> str:
    """Whether a platform gains, as far as its interval says."""
    if one.low is None or one.high is None:
        return "not compared"
    return "gains" if one.low > 0 else "loses" if one.high < 0 else "no difference shown"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _stop(stop: tuple[str, int], number: int, *, many: bool) -> str:
    if many:
        return str(number + 1)
    return "before" if stop[1] == 0 else str(stop[1])


def _ceiling(value: float) -> float:
    """The least of 1, 2, 4, 6, 8, 10 times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return float(next(step * unit for step in (1, 2, 4, 6, 8, 10) if step * unit >= value * (1 - 1e-9)))
