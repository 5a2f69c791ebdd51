"""Rows that cleaning leaves out: counted with a reason, never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import polars as pl

from client.sources.tables import Dropped, SourceReport
from shared.base.errors import InputError

UNKNOWN_ITEM = "item not in the catalogue"
UNKNOWN_USER = "user without interactions"


class Cleaning:
    """Counts what one source loses.

    Args:
        source: The source's name in the platform file.
        where: File or URL that is read, for messages.
        lenient: Whether a source that says nothing is no error: where a worker reads users' rows, that somebody, or nobody, is
            there must not decide whether the platform takes part.
    """

    def __init__(self, *, source: str, kind: str, where: str, lenient: bool = False) -> None:
        self.source, self.kind, self.where, self.lenient = source, kind, where, lenient
        self.read = 0
        self.asked: Callable[[], str] = str
        """What a message adds of the keys of JSON lines: which are read and which there are."""
        self._lost: Counter[str] = Counter()

    def keep(self, frame: pl.DataFrame, condition: pl.Expr, *, otherwise: str) -> pl.DataFrame:
        """The rows that meet a condition; the others, null included, are counted under `otherwise`."""
        kept = frame.filter(condition.fill_null(False))
        self.lose(otherwise, frame.height - kept.height)
        return kept

    def lose(self, reason: str, rows: int) -> None:
        """Count rows that are lost for a reason."""
        if rows:
            self._lost[reason] += rows

    def report(self, kept: int, *, usable: int | None = None) -> SourceReport:
        """What reading gave.

        Args:
            kept: Rows that the tables hold.
            usable: Rows that say something, where other sources may have said it too; `kept` if None.

        Raises:
            InputError: nothing was kept: a source that says nothing is a mistake in the platform file or in the data.
        """
        if not (kept if usable is None else usable) and not self.lenient:
            reasons = "; ".join(f"{reason}: {rows}" for reason, rows in self._lost.items())
            found = (
                f"none of the {self.read} rows of source '{self.source}' is usable ({reasons})"
                if self.read
                else f"source '{self.source}' is empty"
            )
            do = "check separator, header, columns and encoding in the platform file, or leave the source out"
            raise InputError(found, where=self.where, do=do + self.asked())
        dropped = tuple(Dropped(source=self.source, reason=reason, rows=rows) for reason, rows in self._lost.items())
        return SourceReport(source=self.source, kind=self.kind, read=self.read, kept=kept, dropped=dropped)
