"""The coordinator's page in a real browser: true to its folder, quiet, self-contained, legible on a phone and on a desktop."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from server.console import overview
from server.console.api import console_api
from server.console.overview import Overview
from server.console.page import console_page, console_policy
from server.deployment.folder import CoordinatorFolder
from server.monitoring.journal import Journal
from server.monitoring.run_events import Event, Kind
from server.operators.operator_log import LOG
from shared.pages.access_guard import AccessGuard
from shared.pages.local_server import names_of, tcp_socket
from tests.server.conftest import tally_of
from tests.server.console.conftest import TOKEN
from tests.support.browser import LOW_CONTRAST, Pages, chromium

_TEXTS = "p, li, h1, h2, h3, dt, dd, code, time, summary, span, b, small, label, button, figcaption"
_UNNAMED = """() => [...document.querySelectorAll('button, input, svg[role=img], section')].filter(one =>
  one.checkVisibility() && !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.labels?.length
  || one.closest('label') || (one.tagName === 'BUTTON' && one.textContent.trim()))).map(one => one.outerHTML.slice(0, 80))"""

_SHOWN = "all => all.filter(one => one.checkVisibility()).map(one => ONE)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def address(federation: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(overview, "REFRESH", 0.1)
    listener = tcp_socket("127.0.0.1", 0)
    guarded = AccessGuard(console_api(Overview(federation)), token=TOKEN, hosts=names_of(listener, "127.0.0.1"))
    server = uvicorn.Server(uvicorn.Config(guarded, log_config=None, access_log=False, ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page, and holds that nothing was said on the console and no other server was asked."""
    pages = Pages(browser)

    def show(fragment: str = f"#{TOKEN}", **options: Any) -> Any:
        page = pages.open(f"{address}/{fragment}", **options)
        if fragment:
            page.wait_for_selector("#now-events li")
        return page

    yield show
    pages.close()
    assert [text for text in pages.said if "401" not in text] == []
    assert len(pages.asked) > len(pages) and all(url.startswith(address) or url == "data:," for url in pages.asked), pages.asked


def test_it_shows_what_the_folder_says(opened: Any, address: str) -> None:
    page = opened(viewport={"width": 1280, "height": 900})
    values = httpx.get(f"{address}/overview", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60).json()
    assert values["problems"] == [] and page.locator(".problem").count() == 0
    assert page.locator(".platform h3").all_text_contents() == [one["name"] for one in values["platforms"]]
    assert page.locator(".run .line .strong").all_text_contents() == [f"spring-{number}" for number in (5, 4, 3, 2, 1)]
    states = ["queued", "running", "aborted", "incomplete", "finished"]
    assert page.locator(".run .line .state").all_text_contents() == states == [one["state"] for one in values["runs"]]
    assert "ε 3.9 of 8 spent" in page.locator(".platform").first.text_content()
    assert "do not know series" in page.locator(".platform", has_text="series").last.text_content()
    assert "spring-4" in page.locator("#now-line").text_content() and "7 of 20 rounds" in page.locator("#now-line").text_content()
    assert page.locator("#now-rounds rect").count() == 7
    assert page.locator(".model .strong").all_text_contents()[0] == "1"
    assert page.locator("#operator-list b").all_text_contents() == ["owner", "alice", "bob"]
    log = [line.split(" ", 1)[0] for line in page.locator("#log-list li span").all_text_contents()]
    assert log == [one["operator"] for one in values["log"]["actions"]] and values["log"]["head"] in page.content()


def test_a_run_is_followed_as_it_goes_on_and_what_is_open_stays_open(opened: Any, federation: CoordinatorFolder) -> None:
    page = opened()
    page.locator("#run-spring-4").click()
    page.wait_for_selector(".run[open] .events li")
    page.locator("#run-spring-4").focus()
    journal = Journal(folder=federation.run("spring-4"), run="spring-4", rounds=20)
    tallies = {name: tally_of(name, epsilon=4.4, rounds=8) for name in ("books", "music")}
    journal(Event(kind=Kind.ROUND, round=8, text="round 8 of 20 is done", tallies=tallies))
    page.wait_for_selector("#now-line:has-text('8 of 20 rounds')")
    page.wait_for_selector("#now-events li:first-child:has-text('round 8 of 20 is done')")
    page.wait_for_selector(".run[open] .events li:first-child:has-text('round 8 of 20 is done')")
    assert page.locator("#now-rounds rect").count() == 8
    assert page.evaluate("document.activeElement.id") == "run-spring-4"


def test_a_cut_log_is_said_and_hides_nothing_else(opened: Any, federation: CoordinatorFolder) -> None:
    page = opened()
    path = federation.operators / LOG
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    page.wait_for_selector(".problem:has-text('was written')")
    assert page.locator(".platform").count() == 4 and page.locator(".run").count() == 5
    assert "does not hold" in page.locator("#log-list").text_content()


def test_a_server_that_is_down_and_a_new_federation(
    opened: Any, federation: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.deployment.status import status_of

    monkeypatch.setattr(overview, "status_of", status_of)
    page = opened()
    page.wait_for_selector(".tile:has-text('fedfuse server start')")
    assert page.locator(".platform .state").first.text_content() == "server down"


def test_the_token_is_asked_for_and_leaves_the_address(opened: Any, address: str) -> None:
    page = opened("")
    page.wait_for_selector("#unlock:not([hidden])")
    assert "spring" not in page.content()
    page.fill("#token", "x" * 43)
    page.click("#unlock .main")
    page.wait_for_selector("#unlock-wrong:not(:empty)")
    page.fill("#token", TOKEN)
    page.click("#unlock .main")
    page.wait_for_selector(".platform")
    other = opened()
    assert TOKEN not in other.url and TOKEN not in other.content()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (390, "light"), (768, "dark"), (1280, "light")])
def test_nothing_hangs_over_the_side_and_all_is_legible(opened: Any, width: int, scheme: str) -> None:
    page = opened(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
    page.locator("#run-spring-2").click()
    page.wait_for_selector(".run[open] .events li")
    for more in page.locator(".platform summary").all():
        more.click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate(LOW_CONTRAST, [_TEXTS, True]) == [] and page.evaluate(_UNNAMED) == []
    levels = page.eval_on_selector_all("h1, h2, h3", _SHOWN.replace("ONE", "+one.tagName[1]"))
    assert levels[0] == 1 and levels.count(1) == 1
    assert min(page.eval_on_selector_all("button, summary", _SHOWN.replace("ONE", "one.getBoundingClientRect().height"))) >= 24


def test_names_of_others_are_text(opened: Any, federation: CoordinatorFolder) -> None:
    """A platform words its trouble itself."""
    state = federation.run("spring-4") / "state.json"
    values = json.loads(state.read_text())
    values["left_out"]["series"] = "<img src=x onerror=alert(1)> <b>bold</b>"
    state.write_text(json.dumps(values))
    page = opened()
    page.wait_for_selector(".trouble:has-text('<img src=x')")
    assert page.locator(".trouble img, .trouble b").count() == 0


def test_without_the_token_nothing_is_told(address: str) -> None:
    for path in ("/overview", "/events?run=spring-1", "/nothing"):
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}):
            answer = httpx.get(address + path, headers=headers, timeout=60)
            assert answer.status_code == 401 and "spring" not in answer.text
    assert "spring" not in httpx.get(address, timeout=60).text
    right = {"authorization": f"Bearer {TOKEN}"}
    for run in ("../keys", "nobody", "", "A"):
        assert httpx.get(f"{address}/events", params={"run": run}, headers=right, timeout=60).status_code == 404
    assert httpx.get(f"{address}/overview", headers={**right, "host": "evil.example"}, timeout=60).status_code == 421
    assert httpx.post(f"{address}/overview", headers=right, json={}, timeout=60).status_code == 405


def test_the_page_names_nothing_outside() -> None:
    text = console_page()
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "") and "https:" not in text
    assert "url(" not in text and "@import" not in text and "innerHTML" not in text and "eval" not in text.split("<script>")[1]
    assert "unsafe" not in console_policy()
