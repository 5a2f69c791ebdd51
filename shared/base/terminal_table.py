"""Tables and text on a terminal: one style for every command, and nothing that is to be copied cut in two."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement, measure_renderables
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

# What nobody reads on a screen has no lines that end at its edge: a log, a pipe, a file.
_NO_EDGE = 1 << 16


def terminal_console(*, stderr: bool = False, **options: Any) -> Console:
    """Where commands print. Without a terminal, and without COLUMNS, lines end where their text ends: a path is in one piece.

    Args:
        options: Of rich's Console.
    """
    console = Console(stderr=stderr, emoji=False, **options)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _NO_EDGE
    return console


class TerminalTable(Table):
    """A table that becomes a list of records where a word would be cut: a name in two pieces is no name to give a command."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=_NO_EDGE)
        whole = super().__rich_measure__(console, wide).maximum
        if whole <= options.max_width or not self.columns:
            yield from super().__rich_console__(console, options)
            return
        most = [self._measured(column, console, wide).maximum for column in self.columns]
        between = whole - sum(most)
        least = [self._measured(column, console, wide).minimum for column in self.columns]
        if (left := options.max_width - between - sum(least)) >= 0:
            yield from self._narrowed(widths_within(least, most, left), console, options)
            return
        yield from self._records(console)

    def _narrowed(self, widths: Sequence[int], console: Console, options: ConsoleOptions) -> RenderResult:
        before = [column.width for column in self.columns]
        try:
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
            yield from super().__rich_console__(console, options)
        finally:
            for column, former in zip(self.columns, before, strict=True):
                column.width = former

    def _measured(self, column: Column, console: Console, options: ConsoleOptions) -> Measurement:
        return measure_renderables(console, options, [_text(console, one) for one in (column.header, *column.cells)])

    def _records(self, console: Console) -> RenderResult:
        """Each row by itself: its first cell, and below it a line a cell, each after the name of its column."""
        if self.title:
            yield _text(console, self.title)
        heads = [_text(console, column.header) for column in self.columns]
        wide = max((head.cell_len for head in heads[1:]), default=0)
        for row in zip(*(column.cells for column in self.columns), strict=True):
            yield Text("")
            yield Text.assemble((heads[0].plain, "dim"), " " if heads[0].plain else "", _text(console, row[0]))
            for head, cell in zip(heads[1:], row[1:], strict=True):
                if (shown := _text(console, cell)).plain:
                    name = Text(f"{head.plain:<{wide}} ", style="dim")
                    yield Padding(name + shown, (0, 0, 0, 2), expand=False)
        yield Text("")
        if self.caption:
            yield _text(console, self.caption)


def widths_within(least: Sequence[int], most: Sequence[int], left: int) -> list[int]:
    """Widths of columns: what is `left` beyond the least goes to the narrowest first, and to none more than it has use for.

    >>> widths_within([2, 2, 5], [2, 4, 50], 10)
    [2, 4, 13]
    """
    widths = list(least)
    while left > 0 and (open_ := [place for place, width in enumerate(widths) if width < most[place]]):
        narrowest = min(open_, key=widths.__getitem__)
        widths[narrowest] += 1
        left -= 1
    return widths


def _text(console: Console, cell: RenderableType) -> Text:
    """A cell's text, with its styles."""
    return cell.copy() if isinstance(cell, Text) else console.render_str(str(cell))


def terminal_table(title: str | None = None, *, caption: str | None = None, caption_style: str = "dim") -> Table:
    """An empty table: a line under its head and no others, its title on the left; records where it is wider than the terminal.

    Args:
        title: In rich's markup, as the caption is.
    """
    return TerminalTable(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        caption_style=caption_style,
        box=SIMPLE_HEAVY,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
