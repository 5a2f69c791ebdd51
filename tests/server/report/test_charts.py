"""The geometry of the charts: every figure at its place on the axis that is drawn beside it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.report.charts import HEIGHT, ROC_SIZE, WIDTH, _bars, _ceiling, _gains, _names, gain_word, roc_chart, spent_chart
from server.report.report_model import AttackView, SpentHistory, SpentPoint
from tests.server.report.test_conclusion import budget, measured


def history(name: str, *points: tuple[str, int, float]) -> SpentHistory:
    return SpentHistory(platform=name, points=tuple(SpentPoint(run=run, round=at, epsilon=value) for run, at, value in points))


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (place.split() for place in path.removeprefix("M").split(" L"))]


@given(st.lists(st.floats(0, 50), min_size=2, max_size=6), st.lists(st.floats(0, 50), min_size=2, max_size=6))
def test_every_point_is_at_the_height_of_its_epsilon(one: list[float], other: list[float]) -> None:
    """Of two platforms that answered different rounds of two runs."""
    both = [
        history("a", *(("spring", at, value) for at, value in enumerate(one))),
        history("b", *(("autumn", at, value) for at, value in enumerate(other))),
    ]
    chart = spent_chart(both)
    assert chart is not None and chart.left_out == 0 and len(chart.lines) == 2
    (bottom, zero), (top, most) = chart.ticks_y[0], chart.ticks_y[-1]
    assert zero == "0" and float(most) >= max(*one, *other) - 1e-9 and 0 <= top < bottom <= HEIGHT
    assert [(round((y - bottom) / (top - bottom), 3), label) for y, label in chart.ticks_y] == [
        (k / 4, f"{float(most) * k / 4:g}") for k in range(5)
    ]
    steps = [x for line in sorted(chart.lines, key=lambda line: places(line.path)[0][0]) for x, _ in places(line.path)]
    assert steps == sorted(steps) and len(set(steps)) == len(one) + len(other)  # the runs one after the other
    assert 0 <= steps[0] < steps[-1] <= WIDTH
    for line in chart.lines:
        values = one if line.platforms == "a" else other
        heights = [float(most) * (y - bottom) / (top - bottom) for _, y in places(line.path)]
        assert heights == pytest.approx(values, abs=float(most) / 1000)
    assert len(chart.ticks_x) == min(8, len(steps)) and chart.ticks_x[-1] == (steps[-1], str(len(steps)))


def test_what_is_infinite_has_no_place_and_one_point_is_no_line() -> None:
    line = history("a", ("r", 0, 1.0), ("r", 1, 2.0), ("r", 2, math.inf))
    chart = spent_chart([line, history("b", ("r", 0, 9.0)), history("c", ("r", 0, math.inf), ("r", 1, 1.0))])
    assert chart is not None and chart.left_out == 2 and len(places(chart.lines[0].path)) == 2
    assert [label for _, label in chart.ticks_x] == ["before", "1", "2"] and chart.ticks_y[-1][1] == "2"
    assert spent_chart([history("b", ("r", 0, 9.0))]) is None is spent_chart([])


@given(st.floats(1e-6, 1e6))
def test_an_axis_ends_at_a_round_number_that_is_no_further_than_needed(value: float) -> None:
    end = _ceiling(value)
    digits = float(f"{end:e}".split("e")[0])
    assert value * (1 - 1e-6) <= end <= 2 * value * (1 + 1e-6) and min(abs(digits - one) for one in (1, 2, 4, 6, 8)) < 1e-6
    for one in (1, 2, 4, 6, 8):
        unit = 10.0 ** math.floor(math.log10(value))
        assert _ceiling(one * unit) == pytest.approx(one * unit)
    assert _ceiling(0.0) == 1.0


def test_a_bar_is_as_long_as_its_share_and_never_longer_than_its_budget() -> None:
    lines = [budget("half", spent=2.0, of=4.0), budget("all", spent=4.0, of=4.0), budget("over", spent=5.0, of=4.0)]
    lines += [budget("off", of=math.inf), budget("none", of=0.0), budget("unknown", spent=None), budget("unsaid", of=None)]
    assert {name: (bar.spent, bar.over) for name, bar in _bars(lines).items()} == {
        "half": (50.0, False),
        "all": (100.0, False),
        "over": (100.0, True),
    }


def test_a_gain_is_on_the_side_of_zero_that_it_is_on() -> None:
    intervals = {"gains": (0.1, 0.2, 0.3), "loses": (-0.4, -0.2, -0.1), "touches": (0.0, 0.1, 0.2), "below": (-0.2, -0.1, 0.0)}
    lines = [measured(name, low=low, gain=gain, high=high) for name, (low, gain, high) in intervals.items()]
    found = _gains([*lines, measured("half", low=0.1, high=0.2), measured("unknown")])
    assert {name: one.word for name, one in found.items()} == {
        "gains": "gains",
        "loses": "loses",
        "touches": "no difference shown",
        "below": "no difference shown",
    }
    assert gain_word(measured(low=0.1)) == gain_word(measured(high=-0.1)) == "not compared"
    # The farthest end is near the edge, and all others are as far from the middle as their figures are from zero.
    scale = (found["loses"].low - 50) / -0.4
    assert 40 < -(found["loses"].low - 50) <= 50
    for name, figures in intervals.items():
        assert [found[name].low, found[name].gain, found[name].high] == pytest.approx(
            [50 + scale * one for one in figures], abs=0.02
        )
    still = _gains([measured(low=0.0, gain=0.0, high=0.0)])["shop"]
    assert (still.low, still.gain, still.high, still.zero) == (50.0, 50.0, 50.0, 50.0)


def test_an_attackers_curve_goes_from_corner_to_corner() -> None:
    curve = ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0))
    view = AttackView(attacker="a", canaries=9, bound=0.0, area=0.625, low=None, roc=curve)
    chart = roc_chart([view, view.model_copy(update={"roc": ()}), *[view.model_copy(update={"attacker": "b"})] * 9])
    assert chart is not None and len(chart.lines) == 6 and [line.style for line in chart.lines] == list(range(6))
    assert places(chart.lines[0].path) == [(0, ROC_SIZE), (ROC_SIZE / 4, ROC_SIZE / 2), (ROC_SIZE, 0)]
    assert chart.lines[0].marks == ((ROC_SIZE / 4, ROC_SIZE / 2),) and "a: 0.625" in chart.text
    assert roc_chart([view.model_copy(update={"roc": curve[:1]})]) is None
    assert roc_chart([view.model_copy(update={"roc": (curve[0], curve[-1])})]) is not None


@pytest.mark.parametrize(
    ("count", "said"), [(1, "a"), (4, "a, b, c, d"), (5, "a, b, c, d and 1 more"), (9, "a, b, c, d and 5 more")]
)
def test_of_many_names_four_are_said(count: int, said: str) -> None:
    assert _names("abcdefghi"[:count]) == said
