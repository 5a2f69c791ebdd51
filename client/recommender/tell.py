"""How what is being done is told to a person."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str], None]
"""Called with what is being done, in a few words."""


def silent(what: str) -> None:
    """Tells nobody."""
