"""The page: one HTML file that needs nothing from anywhere, with no script in it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from server.report.charts import page_charts
from server.report.page_tables import figure, page_tables, share
from server.report.report_model import RunReport
from shared.pages.house_style import house_style, page_policy

_HERE = Path(__file__).parent


def render_page(report: RunReport, *, refresh: int = 0) -> str:
    """The report as a page.

    Every word of another party is escaped. The page's own policy forbids scripts and every request, whatever its text says.

    Args:
        refresh: Seconds after which a browser asks again, for a run that goes on; 0 for a page that is kept.
    """
    # A style sheet named by its hash is the only thing that the policy lets in.
    css = _style()
    values = report.model_dump(mode="json")
    return _template().render(
        report=values,
        tables=page_tables(values),
        charts=page_charts(report),
        css=Markup(css),  # noqa: S704 - the package's own files
        policy=page_policy(style=css),
        refresh=refresh,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": figure, "share": share}
    return environment.get_template("page.html.j2")


@cache
def _style() -> str:
    return house_style((_HERE / "page.css").read_text(encoding="utf-8"))
