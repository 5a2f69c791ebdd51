"""The page: one text, with nothing from anywhere, and no word of the federation before its token is given."""

from __future__ import annotations

from pathlib import Path

from shared.pages.house_style import house_style, page_policy

_HERE = Path(__file__).parent


def console_page() -> str:
    """The page; its script asks the server, with the token of whoever looks at it."""
    return _read("page.html").replace("/* style */", _style()).replace("/* script */", _read("page.js"))


def console_policy() -> str:
    """Lets in the page's own style and script, and requests to the server that it came from."""
    return page_policy(style=_style(), script=_read("page.js"), connects=True)


def _style() -> str:
    return house_style(_read("page.css"))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
