"""A platform's tables for recommending, read when they are first asked for, and once however many models use them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from client.config.platform_file import PlatformFile
from client.recommender.serving.kept_model import Shelf
from client.recommender.tell import Tell

if TYPE_CHECKING:
    from client.examples.split import Split
    from client.sources.tables import Tables

SEED = 0


class LazyTables:
    """The tables of one platform.

    Args:
        tell: Called when they are read.
    """

    def __init__(self, file: PlatformFile, tell: Tell) -> None:
        self._file, self._tell = file, tell

    @cached_property
    def tables(self) -> Tables:
        """All sources.

        Raises:
            InputError: they cannot be read.
        """
        # Polars and all that reads tables take seconds to load, and a model that was kept needs none of them.
        from client.sources.platform_tables import read_tables

        self._tell("reading the platform's tables")
        return read_tables(self._file, lenient=True)

    @cached_property
    def split(self) -> Split:
        """With nothing held out."""
        from client.examples.split import nothing_held_out

        return nothing_held_out(self.tables, seed=SEED)

    @cached_property
    def shelf(self) -> Shelf:
        """What recommendations need of them."""
        return Shelf.of(self.tables, self.split)
