"""What a command printed, in a form that a test can hold against what is expected."""

from __future__ import annotations

from textwrap import dedent


def tidy(text: str) -> str:
    """Without the line under a table's head, empty ones, what is blank at their ends, and an indent that all have.

    >>> tidy("\\n  run    rounds \\n  ━━━━━━━━━━━━━ \\n  r      1 of 2 \\n\\n")
    'run    rounds\\nr      1 of 2'
    """
    return dedent("\n".join(line.rstrip() for line in text.splitlines() if line.strip(" ━")))
