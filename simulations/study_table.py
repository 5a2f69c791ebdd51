"""What a study found, as a table: a row for each setting and platform."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from client.recommender.model_comparison import MODELS
from shared.base.terminal_table import terminal_table
from shared.protocol.quality import METRICS, NDCG
from simulations.study import GAIN, StudyFigure, StudyResults


def study_table(found: StudyResults) -> Table:
    """NDCG@10 of every setting and platform, with intervals, and who gained."""
    title = f"{METRICS[NDCG].title}, means over users and seeds with 95 % intervals over both"
    table = terminal_table(title, caption="bold: the interval of the gain excludes 0")
    keys = list(dict.fromkeys(key for one in found.figures for key in one.values))
    for column in (*keys, "platform", *MODELS, GAIN, "seeds", "users"):
        table.add_column(escape(column), justify="left" if column in (*keys, "platform") else "right", overflow="fold")
    rows: dict[tuple[str, ...], dict[str, StudyFigure]] = {}
    for one in found.figures:
        if one.metric == NDCG:
            rows.setdefault((*(one.values[key] for key in keys), one.platform), {})[one.model] = one
    before: tuple[str, ...] = ()
    for named, figures in rows.items():
        if before and before[:-1] != named[:-1]:
            table.add_section()
        before = named
        gain, first = figures.get(GAIN), next(iter(figures.values()))
        sure = gain is not None and (gain.estimate.low > 0 or gain.estimate.high < 0)
        shown = [_figure(figures.get(model), signed=model == GAIN) for model in (*MODELS, GAIN)]
        counts = (str(len(first.by_seed)), f"{first.users:,}")
        table.add_row(*(escape(part) for part in named), *shown, *counts, style="bold" if sure else "")
    return table


def _figure(one: StudyFigure | None, *, signed: bool) -> str:
    if one is None:
        return "-"
    form = "+.4f" if signed else ".4f"
    return f"{one.estimate.value:{form}} ({one.estimate.low:{form}} to {one.estimate.high:{form}})"
