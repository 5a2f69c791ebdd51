"""A real browser for pages of ours, and what a page is asked in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

LOW_CONTRAST = """([texts, shown]) => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = c => { const [r, g, b] = parts(c).map(linear); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const under = one => {
    for (; one; one = one.parentElement) {
      const c = getComputedStyle(one).backgroundColor;
      if (parts(c).length < 4 || parts(c)[3] > 0) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const one of document.querySelectorAll(texts)) {
    if (shown && (one.disabled || !one.checkVisibility())) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(under(one))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([one.tagName, one.textContent.slice(0, 40), ratio]);
  }
  return found;
}"""
"""WCAG 2.2, 1.4.3: the texts of a selector, all or those shown, whose contrast with the nearest background is below 4.5 to 1."""


class Pages:
    """Pages opened in contexts of their own, and all that they say and ask for."""

    def __init__(self, browser: Any) -> None:
        self._browser, self._contexts = browser, list[Any]()
        self.said, self.asked = list[str](), list[str]()

    def __len__(self) -> int:
        return len(self._contexts)

    def open(self, address: str, **options: Any) -> Any:
        """Open an address; `options` are those of Playwright's `new_context`."""
        context = self._browser.new_context(**options)
        context.set_default_timeout(120_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(dialog.message))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(address)
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if installed is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        # Tests may run as root, whom Chromium's sandbox refuses; the page is our own.
        found = started.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield found
        found.close()
