"""Tables on a terminal: one style for every command."""

from __future__ import annotations

from rich.box import SIMPLE_HEAVY
from rich.table import Table


def terminal_table(title: str | None = None, *, caption: str | None = None, caption_style: str = "dim") -> Table:
    """An empty table: a line under its head and no others, its title on the left.

    Args:
        title: In rich's markup, as the caption is.
    """
    return Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        caption_style=caption_style,
        box=SIMPLE_HEAVY,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
