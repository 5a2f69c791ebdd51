"""What each table was taken for, as a person sees it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from client.setup.schema_inference import Guess, unread
from client.setup.table_preview import Sample
from shared.base.terminal_table import terminal_table


def guessed_tables(guesses: Iterable[tuple[Sample, Guess | None]], *, title: str) -> Table:
    """A row per table: its name, the kind of source, and the role of each column that is read."""
    shown = terminal_table(escape(title))
    for name in ("table", "taken for", "columns"):
        shown.add_column(name, overflow="fold")
    for sample, guess in guesses:
        if guess is None:
            shown.add_row(escape(sample.name), "[dim]left out[/]", escape(", ".join(sample.frame.columns[:8])))
            continue
        lists = " (lists)" if guess.explode else ""
        more = {
            "friend" if guess.kind == "social" else "item": lists,
            "time": f" ({guess.time_format})" if guess.time_format else "",
        }
        columns = [f"{role}: {column}{more.get(role, '')}" for role, column in guess.columns.items()]
        roles = len(columns)
        columns += [f"text: {', '.join(guess.texts)}"] if guess.texts else []
        columns += [f"numbers, if you declare bounds: {', '.join(guess.numbers)}"] if guess.numbers else []
        columns += [f"not read: {', '.join(left)}"] if (left := unread(sample, guess)) else []
        shown.add_row(escape(sample.name), guess.kind, escape("\n".join([", ".join(columns[:roles]), *columns[roles:]])))
    return shown
