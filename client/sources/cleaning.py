"""Rows that cleaning leaves out: counted with a reason, never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import polars as pl

from client.config.id_rules import USUAL_IDS, IdRules
from client.sources.numbering import Numbering
from client.sources.spellings import known_but_for
from client.sources.tables import Changed, Dropped, EventCount, SourceReport
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
        rules: How the platform's ids are made alike.
    """

    def __init__(self, *, source: str, kind: str, where: str, lenient: bool = False, rules: IdRules = USUAL_IDS) -> None:
        self.source, self.kind, self.where, self.lenient, self.rules = source, kind, where, lenient, rules
        self.read = 0
        self.asked: Callable[[], str] = str
        """What a message adds of the keys of JSON lines: which are read and which there are."""
        self._lost: Counter[str] = Counter()
        self._changed: Counter[tuple[str, str]] = Counter()
        self.times: tuple[int, int] | None = None
        self.events: Sequence[EventCount] = ()
        self._warnings: list[str] = []

    def keep(self, frame: pl.DataFrame, condition: pl.Expr, *, otherwise: str) -> pl.DataFrame:
        """The rows that meet a condition; the others, null included, are counted under `otherwise`."""
        met = frame.select(condition.fill_null(False).alias("met"))["met"]
        if met.all():
            return frame  # as it is, and not a copy
        kept = frame.filter(met)
        self.lose(otherwise, frame.height - kept.height)
        return kept

    def keep_known(
        self, frame: pl.DataFrame, known: pl.Series, *, ids: pl.Series, among: Numbering, otherwise: str
    ) -> pl.DataFrame:
        """The rows whose id is known; of the others a person learns how many are known but for letters or zeros.

        Args:
            known: bool (rows,).
            ids: Of the rows.
            among: The known ids.
        """
        if not self.lenient and len(among) and not known.all():
            for alike in known_but_for(ids.filter(~known), among.spelled, self.rules):
                self.warn(
                    f"ids of rows that are left out ({otherwise}) differ from known ones in {alike.words()} "
                    f"(rows: {alike.count:,}); {alike.difference.cure}"
                )
        return self.keep(frame, pl.lit(known), otherwise=otherwise)

    def lose(self, reason: str, rows: int) -> None:
        """Count rows that are lost for a reason."""
        if rows:
            self._lost[reason] += rows

    def change(self, column: str, how: str, cells: int) -> None:
        """Count cells of a column that were made alike."""
        self._changed[column, how] += cells

    def warn(self, text: str) -> None:
        """Say what is probably not meant, and the cure."""
        if text not in self._warnings:
            self._warnings.append(text)

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
            general = "check separator, header, columns and encoding in the platform file"
            cures = self._warnings or ["check columns in the platform file" if self.asked is not str else general]
            asked = self.asked() if any(reason.startswith("missing ") for reason in self._lost) or not self._warnings else ""
            raise InputError(found, where=self.where, do="; ".join([*cures, "or leave the source out"]) + asked)
        dropped = tuple(Dropped(source=self.source, reason=reason, rows=rows) for reason, rows in self._lost.items())
        changed = tuple(Changed(column=column, how=how, cells=cells) for (column, how), cells in self._changed.items())
        return SourceReport(
            source=self.source,
            kind=self.kind,
            read=self.read,
            kept=kept,
            dropped=dropped,
            changed=changed,
            times=self.times,
            events=self.events,
            warnings=tuple(self._warnings),
        )
