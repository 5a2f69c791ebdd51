"""The page in a real browser: it opens without a word on the console, asks for nothing, and shows what the JSON says."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from server.report.charts import spent_chart
from server.report.page import render_page
from server.report.report_model import RunReport, SpentHistory, SpentPoint
from server.report.written import JSON, PAGE, write_report
from tests.support.browser import LOW_CONTRAST, Pages

Make = Callable[[Path], RunReport]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>{{ 7*7 }}"


_TEXTS = "p, li, td, th, dt, dd, h1, h2, h3, a, caption, summary, .tag, code"
_UNNAMED = """all => all.filter(one => !one.closest('[aria-hidden=true]') && !one.getAttribute('aria-label')
  && !one.querySelector('title')).length"""


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Writes a report, opens its page, and holds that nothing was said on the console and nothing else was asked for."""
    pages = Pages(browser)

    def show(report: RunReport, **options: Any) -> Any:
        write_report(report, tmp_path / "out")
        return pages.open((tmp_path / "out" / PAGE).as_uri(), **options)

    yield show
    pages.close()
    assert pages.said == []
    assert len(pages.asked) == len(pages), pages.asked


def at(values: Any, pointer: str) -> Any:
    for step in pointer.strip("/").split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        values = values[int(step)] if isinstance(values, list) else values[step]
    return values


def agrees(shown: str, value: Any) -> bool:
    """Whether a shown text is that value, to the digits that are shown."""
    if value in (None, "", []):
        return shown == "–"
    if value == "inf":
        return shown == "∞"
    if isinstance(value, bool):
        return shown == ("yes" if value else "no")
    if isinstance(value, int | float):
        number = float(shown.replace(",", "").replace("−", "-").removesuffix(" %"))
        number = number / 100 if shown.endswith("%") else number
        return number == pytest.approx(value, rel=6e-3, abs=6e-5)
    return shown == (value if isinstance(value, str) else "; ".join(value))


def test_every_figure_on_the_page_is_that_of_the_json(finished: Path, report_of: Make, opened: Any, tmp_path: Path) -> None:
    page = opened(report_of(finished))
    values = json.loads((tmp_path / "out" / JSON).read_text())
    cells = page.eval_on_selector_all("[data-at]", "all => all.map(one => [one.dataset.at, one.textContent])")
    wrong = [(pointer, shown, at(values, pointer)) for pointer, shown in cells if not agrees(shown, at(values, pointer))]
    assert wrong == []
    # Each list of the JSON is there, row by row.
    for name, rows in {"budgets": 2, "records": 2, "participants": 2, "quality": 2, "fields": len(values["fields"])}.items():
        assert page.locator(f"#table-{name} tbody tr").count() == rows
    assert page.locator("#table-history tbody tr").count() == sum(len(one["points"]) for one in values["history"])
    assert page.locator("#table-settings tbody tr").count() == len(values["settings"])
    assert len(cells) > 300


def test_the_comparison_would_see_another_figure() -> None:
    assert agrees("7.99", 7.9902) and agrees("99.97 %", 0.99967) and agrees("–", None) and agrees("∞", "inf")
    assert not agrees("7.99", 8.2) and not agrees("50 %", 0.6) and not agrees("yes", False) and not agrees("sound", "unsound")


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_side_and_all_is_legible(
    finished: Path, report_of: Make, opened: Any, width: int, scheme: str
) -> None:
    page = opened(report_of(finished), viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for details in page.query_selector_all("details"):
        details.evaluate("one => one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    low = page.evaluate(LOW_CONTRAST, [_TEXTS, False])
    assert low == []


ATTACK: dict[str, Any] = {
    "release": "updates",
    "platform": "shop",
    "claim": 8.0,
    "delta": 1e-4,
    "confidence": 0.95,
    "views": {
        name: {"canaries": 400, "bound": bound, "area": area, "low": low, "roc": [[0, 0], [0.01, low], [0.3, area], [1, 1]]}
        for name, bound, area, low in (
            ("white box", 2.91, 0.87, 0.19),
            ("white box, differences", 0.0, 0.5, 0.01),
            ("black box", 0.71, 0.72, 0.11),
        )
    },
}


@pytest.mark.parametrize("width", [360, 1280])
def test_an_attack_s_curves_are_drawn_beside_its_figures(
    run: Path, report_of: Make, opened: Any, tmp_path: Path, width: int
) -> None:
    (run / "attack.json").write_text(json.dumps(ATTACK))
    page = opened(report_of(run), viewport={"width": width, "height": 900})
    values = json.loads((tmp_path / "out" / JSON).read_text())
    cells = page.eval_on_selector_all("#attack [data-at]", "all => all.map(one => [one.dataset.at, one.textContent])")
    assert len(cells) > 15 and all(agrees(shown, at(values, pointer)) for pointer, shown in cells)
    assert page.locator("#attack svg.chart .line").count() == 3 and page.locator("#attack .legend li").count() == 3
    assert "white box: 0.870" in (page.locator("#attack svg.chart title").text_content() or "")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = page.eval_on_selector_all("svg", _UNNAMED)
    assert unnamed == 0


def test_a_result_without_curves_has_a_table_alone(run: Path, report_of: Make) -> None:
    views = {name: {key: view[key] for key in ("canaries", "bound", "area")} for name, view in ATTACK["views"].items()}
    (run / "attack.json").write_text(json.dumps({**ATTACK, "views": views}))
    report = report_of(run)
    assert report.attack is not None and [(one.low, one.roc) for one in report.attack.views] == [(None, ())] * 3
    assert "roc-title" not in render_page(report)


def test_the_order_of_reading_and_of_the_keyboard(finished: Path, report_of: Make, opened: Any) -> None:
    page = opened(report_of(finished), viewport={"width": 1280, "height": 900})
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(one => +one.tagName[1])")
    assert levels[:2] == [1, 2] and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    first = page.locator("main h2").first.text_content()
    assert first == "sound"  # the verdict comes first
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdict"
    seen = [page.evaluate("document.activeElement.getAttribute('href')")]
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.getAttribute('href') || document.activeElement.tagName"))
    links = page.eval_on_selector_all("nav a", "all => all.map(one => one.getAttribute('href'))")
    assert seen[1 : 1 + len(links)] == links and all(page.locator(link).count() == 1 for link in links)
    # Focus goes down the page and never back up.
    tops = page.eval_on_selector_all("a, summary, [tabindex]", "all => all.map(one => one.getBoundingClientRect().top + scrollY)")
    assert tops[1:] == sorted(tops[1:])
    assert "SUMMARY" in seen
    unnamed = page.eval_on_selector_all("svg", _UNNAMED)
    assert unnamed == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == len(set(ids))


def test_a_folded_table_is_still_a_table_to_a_reader(finished: Path, report_of: Make, opened: Any) -> None:
    page = opened(report_of(finished), viewport={"width": 390, "height": 800})
    tree = page.locator("#table-budgets").aria_snapshot()
    assert tree.count("- row ") == 3 and 'columnheader "Spent ε"' in tree and 'rowheader "shop"' in tree and "- cell " in tree


def test_it_prints_all_that_is_folded_away(finished: Path, report_of: Make, opened: Any) -> None:
    page = opened(report_of(finished), viewport={"width": 1280, "height": 900})
    assert not page.locator("#table-settings").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#table-settings").is_visible() and not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_another_party_s_words_do_nothing(run: Path, report_of: Make, opened: Any) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["left_out"] = {HOSTILE: HOSTILE}
    metrics["platforms"]["shop"]["recommended_by"] = HOSTILE
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "run.toml").write_text(
        f"run = '''{HOSTILE[:30]}'''\n[settings]\nstrategy = '''{HOSTILE}'''\n'''{HOSTILE}''' = 1\n".replace("''''", "'''")
    )
    report = report_of(run).model_copy(update={"name": HOSTILE})
    page = opened(report)
    assert page.locator("script, img").count() == 0
    assert page.locator("h1").text_content() == HOSTILE
    shown = page.locator("body").text_content()
    assert shown.count("{{ 7*7 }}") >= 2 and "'>49" not in shown
    assert page.locator("#table-participants").get_by_text("onerror").count() >= 1


def test_the_page_names_nothing_outside_and_holds_no_script(finished: Path, report_of: Make) -> None:
    text = render_page(report_of(finished))
    found: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "iframe", "object", "embed", "link", "img", "form", "base")
            found.extend((name, value) for name, value in attrs if name in ("src", "href", "srcset", "style", "action"))
            assert not any(name.startswith("on") for name, _ in attrs)

    Reader().feed(text)
    assert found and all(name == "href" and value and value.startswith("#") for name, value in found)
    assert not re.search(r"url\(|@import|https?:", text)
    assert "default-src 'none'; style-src 'sha256-" in html.unescape(text)


def test_lines_that_coincide_are_one_and_too_many_are_counted() -> None:
    def history(name: str, last: float) -> SpentHistory:
        return SpentHistory(platform=name, points=tuple(SpentPoint(run="r", round=k, epsilon=last * k / 3) for k in range(4)))

    chart = spent_chart([history("a", 3.0), history("b", 3.0), *(history(f"p{k}", 4.0 + k) for k in range(8))])
    assert chart is not None and len(chart.lines) == 6 and chart.left_out == 4
    chart = spent_chart([history("a", 3.0), history("b", 3.0)])
    assert chart is not None and [line.platforms for line in chart.lines] == ["a, b"] and "a, b at 3" in chart.text
    # From the first tick to the last, at the height of its epsilon.
    (line,) = chart.lines
    places = [tuple(map(float, place.split())) for place in line.path[1:].split(" L")]
    assert [x for x, _ in places] == [x for x, _ in chart.ticks_x] and len(places) == 4
    assert chart.ticks_y[0][0] == places[0][1] > places[1][1] > places[3][1] >= chart.ticks_y[-1][0]
    points = tuple(SpentPoint(run="r", round=k, epsilon=float("inf")) for k in range(4))
    assert spent_chart([SpentHistory(platform="a", points=points)]) is None
