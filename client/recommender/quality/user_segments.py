"""Parts of a platform's held-out users: by the length of their history, the popularity of their item, and declared columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.config.platform_file import PlatformFile
from client.config.source_schema import ItemsSource, ProfilesSource
from client.examples.split import Split
from client.recommender.model_comparison import FEW_EVENTS, RARE_ITEMS, compared_segments
from client.sources.cleaning import Cleaning
from client.sources.ids import as_ids
from client.sources.kinds.interactions import keyed
from client.sources.source_rows import Wanted, place, read_source
from client.sources.tables import Tables
from shared.base.errors import InputError

Mask = NDArray[np.bool_]

SOME_EVENTS = 10
"""Training items of a user with some; more are many."""
POPULAR_SHARE = 0.5
"""The most liked items that have this share of all likes are popular."""
MOST_VALUES = 12
"""Values of a declared column that are segments of their own; the rarer ones are one together."""
OTHERS, MISSING = "(others)", "(missing)"


def usual_segments(split: Split, *, items: int) -> dict[str, Mask]:
    """Segments that every platform has, bool (users with a held-out item,) each; the first is everybody."""
    users = np.flatnonzero(split.held >= 0)
    held, length = split.held[users], split.train.lengths()[users]
    likes = np.bincount(split.train.values, minlength=items)
    order = np.argsort(-likes, kind="stable")
    before = np.cumsum(likes[order]) - likes[order]
    popular = np.zeros(items, np.bool_)
    popular[order] = (before < POPULAR_SHARE * likes.sum()) & (likes[order] > RARE_ITEMS)
    usual = compared_segments(split)
    return {
        "all": usual["all"],
        "few-events": usual["few-events"],
        "some-events": (length > FEW_EVENTS) & (length <= SOME_EVENTS),
        "many-events": length > SOME_EVENTS,
        "rare-items": usual["rare-items"],
        "other-items": ~usual["rare-items"] & ~popular[held],
        "popular-items": popular[held],
    }


def declared_segments(file: PlatformFile, tables: Tables, split: Split, columns: Sequence[str]) -> dict[str, Mask]:
    """Segments by columns of the platform's sources: a user's value, or that of their held-out item.

    Args:
        columns: Each as source.column, of a source of profiles or of items.

    Raises:
        InputError: there is no such source or column.
    """
    found: dict[str, Mask] = {}
    users = np.flatnonzero(split.held >= 0)
    for named in columns:
        role, values = _column(file, named)
        ids = tables.user_ids if role == "user" else tables.item_ids
        numbers = users if role == "user" else split.held[users]
        own = np.array([values.get(ids[number]) or MISSING for number in numbers.tolist()], dtype=object)
        several, counts = np.unique(own.astype(str), return_counts=True)
        common = [str(value) for value in several[np.argsort(-counts, kind="stable")][:MOST_VALUES]]
        for value in common:
            found[f"{named}={value}"] = own == value
        rest = ~np.isin(own.astype(str), common)
        if rest.any():
            found[f"{named}={OTHERS}"] = rest
    return found


def _column(file: PlatformFile, named: str) -> tuple[str, Mapping[str, str]]:
    """Whether a column is of users or of items, and its value for each id."""
    name, _, column = named.partition(".")
    source = file.sources.get(name)
    if not isinstance(source, ProfilesSource | ItemsSource) or not column:
        known = [key for key, one in file.sources.items() if isinstance(one, ProfilesSource | ItemsSource)]
        raise InputError(
            f"--by {named!r} is no column of a source of profiles or items",
            where=str(file.path),
            do=f"write SOURCE.COLUMN, with a source such as {', '.join(known) or 'profiles'}",
        )
    role = "user" if isinstance(source, ProfilesSource) else "item"
    cleaning = Cleaning(source=name, kind=source.kind, where=place(source), lenient=True, rules=file.ids)
    wanted = [*Wanted.ids(source, role), Wanted(name="segment", column=column)]
    frame = keyed(read_source(source, cleaning, wanted, public=role == "item").frame, cleaning, (role,))
    frame = frame.select(as_ids(frame[role], file.ids).alias("id"), pl.col("segment")).unique("id", keep="first")
    return role, dict(zip(frame["id"].to_list(), frame["segment"].to_list(), strict=True))
