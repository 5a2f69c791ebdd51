"""The style sheet that all pages share, and the policy of a page that needs nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path


def house_style(own: str) -> str:
    """Colours in light and dark, letters and headings, and after them a page's own rules.

    Args:
        own: The page's own style sheet.
    """
    return (Path(__file__).parent / "house.css").read_text(encoding="utf-8") + own


def page_policy(*, style: str, script: str = "", connects: bool = False) -> str:
    """A content security policy that lets in these very texts alone, by their hash, and forbids every request.

    Args:
        connects: Whether the script may ask the page's own server.
    """
    rules = ["default-src 'none'", f"style-src '{_hash(style)}'"]
    rules += [f"script-src '{_hash(script)}'"] if script else []
    # The page embeds an empty icon: without one a browser would ask the server.
    rules += ["connect-src 'self'", "img-src data:"] if connects else []
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
