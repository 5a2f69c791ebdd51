"""A quality report as tables: metrics in rows, models side by side, each figure with its interval."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from client.evaluation.click_metrics import CLICK_METRICS
from client.evaluation.list_metrics import LIST_METRICS
from client.evaluation.user_bootstrap import Estimate
from client.recommender.quality.model_quality import QualityReport
from shared.base.terminal_table import terminal_table

_FIRST = "ndcg"


def quality_tables(name: str, report: QualityReport) -> list[Table]:
    """Lists, the classifier with its reliability, and segments."""
    return [_lists(name, report), *([_clicks(name, report)] if report.calibrations else []), _segments(name, report)]


def lengths_of(text: str) -> tuple[int, ...]:
    """List lengths from "5,10,20", ascending, each once.

    Raises:
        ValueError: it is no such list of numbers.

    >>> lengths_of("10, 5,10")
    (5, 10)
    """
    return tuple(sorted({int(part) for part in text.split(",")}))


def _lists(name: str, report: QualityReport) -> Table:
    models = report.segments["all"]
    table = terminal_table(f"{escape(name)}: lists of {report.users['all']:,} held-out users, with 95 % intervals over users")
    table.add_column("metric")
    for model in models:
        table.add_column(model, justify="right")
    for metric, about in LIST_METRICS.items():
        table.add_section()
        for k in report.lengths:
            table.add_row(about.title.format(k=k), *(_figure(one.lists[k][metric]) for one in models.values()))
    return table


def _clicks(name: str, report: QualityReport) -> Table:
    models = {model: one for model, one in report.segments["all"].items() if one.clicks}
    chosen = "; ".join(
        f"{model}: {one.method}, predicted from probability {one.threshold:.2g} on" for model, one in report.calibrations.items()
    )
    table = terminal_table(
        f"{escape(name)}: is an item the next that a user likes? Among all that they have not met", caption=escape(chosen)
    )
    table.add_column("metric")
    for model in models:
        table.add_column(model, justify="right")
    for metric, about in CLICK_METRICS.items():
        table.add_row(about.title, *(_figure(one.clicks[metric]) for one in models.values()))
    for model in models:
        table.add_section()
        table.add_row(f"[bold]reliability of {model}[/]", *("" for _ in models))
        for one in report.reliability[model]:
            shown = f"{one.observed:.2g} ({one.low:.2g} to {one.high:.2g}) of {one.pairs:,}"
            place = list(models).index(model)
            cells = ["" for _ in models]
            cells[place] = shown
            table.add_row(f"  predicted {one.predicted:.2g}", *cells)
    return table


def _segments(name: str, report: QualityReport) -> Table:
    k = min(report.lengths, key=lambda length: abs(length - 10))
    title = LIST_METRICS[_FIRST].title.format(k=k)
    table = terminal_table(f"{escape(name)}: {title} by segment")
    models = list(report.segments["all"])
    for column in ("segment", "users", *models):
        table.add_column(column, justify="left" if column == "segment" else "right")
    for segment, found in report.segments.items():
        figures = [_figure(found[model].lists[k][_FIRST]) if found else "-" for model in models]
        table.add_row(escape(segment), f"{report.users[segment]:,}", *figures)
    return table


def _figure(one: Estimate) -> str:
    if one.value != one.value:
        return "-"
    return f"{one.value:.4g} ({one.low:.4g} to {one.high:.4g})"
