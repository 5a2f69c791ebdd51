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
