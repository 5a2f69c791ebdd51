"""How what is being done is reported to a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.base.progress import Progress

Tell = Callable[[str], None]
"""Called with what is being done, in a few words."""


def silent(what: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Where reports go; nowhere by default.

    Args:
        say: Called with what a person should know, in one line.
        tell: Called with what is being done.
        progress: Called with how far it is.
    """

    say: Tell = silent
    tell: Tell = silent
    progress: Progress | None = None


UNREPORTED = Reports()
