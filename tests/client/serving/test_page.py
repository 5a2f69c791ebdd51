"""The page in a real browser: quiet, self-contained, legible on a phone and on a desktop, and true to the server's answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from client.serving.page import content_policy, rendered_page
from shared.pages.access_guard import AccessGuard
from shared.pages.local_server import names_of, tcp_socket
from tests.client.serving.conftest import TOKEN, Served
from tests.support.browser import LOW_CONTRAST, Pages

_TEXTS = "p, li, td, th, h1, h2, h3, label, button, summary, caption, input, select, span.n, span.muted"
_UNNAMED = """() => [...document.querySelectorAll('button, input, select, svg[role=img], dialog, section')].filter(one =>
  one.checkVisibility() && !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.labels?.length
  || one.closest('label') || (one.tagName === 'BUTTON' && one.textContent.trim()))).map(one => one.outerHTML.slice(0, 80))"""


@pytest.fixture
def address(start: Callable[..., Served], model: Path) -> Iterator[str]:
    """A server with all three models."""
    served = start(model)
    listener = tcp_socket("127.0.0.1", 0)
    guarded = AccessGuard(served.client.app.inside, token=TOKEN, hosts=names_of(listener, "127.0.0.1"))  # type: ignore[union-attr]
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
    yield lambda fragment=f"#{TOKEN}", **options: pages.open(f"{address}/{fragment}", **options)
    pages.close()
    assert [text for text in pages.said if "401" not in text] == []
    assert all(url.startswith(address) or url == "data:," for url in pages.asked), pages.asked


def for_user(page: Any, user: str) -> None:
    page.wait_for_selector(".item")
    page.fill("#user", user)
    page.click("#who-user .main")
    page.wait_for_selector("#lists:not(.waits) .item")


def test_it_shows_what_the_server_answers(opened: Any, address: str) -> None:
    import httpx

    page = opened()
    with page.expect_response("**/recommend"):
        page.wait_for_selector(".item")
    with page.expect_response("**/recommend") as got:
        for_user(page, "u3")
    answer = got.value.json()
    page.wait_for_selector(f"#lists .item .title:text-is('{answer['items'][0]['title']}')")
    assert page.locator(".item .title").all_text_contents() == [one["title"] for one in answer["items"]]
    assert page.locator("#history li").all_text_contents() == [one["title"] for one in answer["history"]]
    first = answer["items"][0]
    page.locator(".item summary").first.click()
    totals = page.locator(".item").first.locator("tfoot td").all_text_contents()
    assert totals == [f"{first['score']:.6f}"] * 2
    rows = page.locator(".item").first.locator("table").first.locator("tbody td").all_text_contents()
    assert rows == [f"{value:.6f}".replace("-", "\u2212") for value in first["parts"].values()]
    assert httpx.get(f"{address}/healthz", timeout=60).json()["status"] == "ok"


def test_an_event_moves_the_list_at_once(opened: Any) -> None:
    page = opened()
    for_user(page, "u3")
    page.wait_for_selector("#history li")
    title = page.locator(".item .title").first.text_content()
    page.get_by_role("button", name=f"They like {title}", exact=True).click()
    page.wait_for_selector(f"#history li:first-child:text-is('{title}')")
    page.wait_for_selector("#lists:not(.waits) .item")
    assert title not in page.locator(".item .title").all_text_contents()


def test_models_side_by_side_and_what_each_source_adds(opened: Any) -> None:
    page = opened(viewport={"width": 1280, "height": 900})
    for_user(page, "u3")
    page.get_by_role("button", name="Side by side").click()
    page.wait_for_selector("#lists .list:nth-child(3)")
    assert page.locator(".list h2").all_text_contents() == ["own", "global", "fused"]
    assert page.locator("#source-bars .card").count() == 3
    assert "liked together" in page.locator("#source-bars .card").first.text_content()
    lists = [set(box.locator(".title").all_text_contents()) for box in page.locator(".list").all()]
    for place, box in enumerate(page.locator(".list").all()):
        only = {title for title in lists[place] if sum(title in one for one in lists) == 1}
        assert set(box.locator(".alone-here .title").all_text_contents()) == only


def test_somebody_new_is_asked_what_they_like(opened: Any) -> None:
    page = opened()
    page.wait_for_selector(".item")
    page.get_by_role("button", name="Somebody new").click()
    page.fill("#find", "film 1")
    page.locator("#found button").first.click()
    page.wait_for_selector("#history li")
    page.wait_for_selector("#lists:not(.waits) .item")
    page.get_by_role("button", name="More like").first.click()
    page.wait_for_selector("#alike[open] li")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Without film 1").click()
    page.wait_for_selector(".item", state="detached")


def test_the_token_is_asked_for_and_leaves_the_address(opened: Any) -> None:
    page = opened("")
    page.wait_for_selector("#unlock:not([hidden])")
    page.fill("#token", "x" * 43)
    page.click("#unlock .main")
    page.wait_for_selector("#unlock-wrong:not(:empty)")
    page.fill("#token", TOKEN)
    page.click("#unlock .main")
    page.wait_for_selector(".item")
    other = opened()
    other.wait_for_selector(".item")
    assert TOKEN not in other.url and TOKEN not in other.content()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (390, "light"), (768, "dark"), (1280, "light")])
def test_nothing_hangs_over_the_side_and_all_is_legible(opened: Any, width: int, scheme: str) -> None:
    page = opened(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for_user(page, "u3")
    page.locator(".item summary").first.click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Side by side").click()
    page.wait_for_selector("#lists:not(.waits) .list:nth-child(3)")
    page.locator(".item summary").first.click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate(LOW_CONTRAST, [_TEXTS, True]) == [] and page.evaluate(_UNNAMED) == []
    levels = page.eval_on_selector_all(
        "h1, h2, h3", "all => all.filter(one => one.checkVisibility()).map(one => +one.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1


def test_the_page_names_nothing_outside() -> None:
    text = rendered_page()
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "") and "https:" not in text
    assert "url(" not in text and "@import" not in text and "innerHTML" not in text and "eval" not in text.split("<script>")[1]
    assert "unsafe" not in content_policy()
