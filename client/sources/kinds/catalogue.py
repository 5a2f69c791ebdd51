"""The catalogue: which items there are. It is public, so it comes from a public table and from no user's rows."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from client.config.id_rules import USUAL_IDS, IdRules
from client.config.source_schema import CatalogueFile
from client.sources.cleaning import Cleaning
from client.sources.kinds.interactions import keyed
from client.sources.kinds.items import DUPLICATE, Described
from client.sources.numbering import Numbering
from client.sources.source_rows import Wanted, place, read_table
from client.sources.tables import SourceReport

NAME = "catalogue"


def read_catalogue(file: CatalogueFile, *, where: str, rules: IdRules = USUAL_IDS) -> tuple[Numbering, SourceReport]:
    """The declared list of item ids, in its order, and what reading it gave.

    Args:
        where: The platform file, for messages.
        rules: How ids are made alike.

    Raises:
        InputError: the list cannot be read, lacks the column or names no item.
    """
    cleaning = Cleaning(source=NAME, kind=NAME, where=f"{place(file)} ({where}, [catalogue])", rules=rules)
    asked = [Wanted(name="item", column=file.column, key=True, kind="id", single=True)]
    frame = keyed(read_table(file, cleaning, asked, source=NAME, public=True).frame, cleaning, ("item",))
    kept = frame["item"].unique(maintain_order=True)
    cleaning.lose(DUPLICATE, frame.height - len(kept))
    return Numbering(kept), cleaning.report(len(kept))


def described_items(tables: Sequence[Described]) -> Numbering:
    """The items that the item tables list, in their order."""
    return Numbering(pl.concat([table.ids for table in tables]).unique(maintain_order=True))
