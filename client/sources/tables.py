"""A platform's sources after reading and cleaning: users and items as numbers, texts and vectors.

`client/sources` makes a `Tables`; `client/examples/user_examples.py` turns it into user examples. Item data is
public; everything under a user is private and must not leave the platform unnoised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Rows of one source that cleaning left out: how many, and why."""

    source: str
    reason: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Cells of one column that were made alike: how many, and how."""

    column: str
    how: str
    cells: int


@dataclass(frozen=True, kw_only=True)
class EventCount:
    """Rows of one event, and what it counts for; None where the platform file gives it no weight."""

    event: str
    rows: int
    weight: float | None


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """What reading one source gave; shown by `fedfuse check`, never sent.

    Args:
        times: First and last time, seconds since 1970; None where the source has no times, or no row.
        events: Every event, the most frequent first; empty where the source has none.
        warnings: What is probably not meant, with the cure.
    """

    source: str
    kind: str
    read: int
    kept: int
    dropped: Sequence[Dropped] = ()
    changed: Sequence[Changed] = ()
    times: tuple[int, int] | None = None
    events: Sequence[EventCount] = ()
    warnings: Sequence[str] = ()


UNTIMED = -1
"""The time of a row without one: before all others, so that what is held out is what came last by time."""


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """All interactions, sorted by user and then by time (or file order), one row per (user, item).

    Args:
        offsets: int64 (users + 1,). Rows of user u are offsets[u]:offsets[u + 1].
        item: int32 (rows,). Item numbers.
        weight: float32 (rows,). Event weight of the row, above 0 where `positive`.
        positive: bool (rows,). Whether the row counts as a liked item (else it is only "known").
        time: int64 (rows,) seconds since 1970, `UNTIMED` where a row has none; None where no source has times.
    """

    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    weight: NDArray[np.float32]
    positive: NDArray[np.bool_]
    time: NDArray[np.int64] | None


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Users' texts about items (reviews, tags given), sorted by user and then by time.

    A note is shown in a user's text only when its item is in the shown history, so that a note on
    a held-out or predicted item cannot give the answer away.

    Args:
        offsets: int64 (users + 1,).
        item: int32 (rows,). -1 where the note's item is not in the catalogue.
        text: The note, one per row.
        public: Whether the source says that everyone may read them; only then do they enter item texts.
    """

    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    text: Sequence[str]
    public: bool


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """A precomputed embedding per user or per item.

    Args:
        values: float32 (users or items, width), zero where missing, within the declared bounds.
        present: bool (users or items,).
    """

    values: NDArray[np.float32]
    present: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Ties:
    """Directed social ties: row (a, b) says that a names b. The row is a's.

    Args:
        offsets: int64 (users + 1,).
        friend: int32 (rows,). User numbers, each user's in a fixed pseudo-random order of the pair; -1 where the
            named person has no interactions. Such a name keeps its place, so that one person's removal
            moves nobody up in another's list (`client/examples/friends.py`).
        influence: Greatest number of other users' training examples that one user's history may
            enter; 0 keeps friends out of training (they still serve recommendations, which stay here).
        friends: Greatest number of friends shown in one example.
    """

    offsets: NDArray[np.int64]
    friend: NDArray[np.int32]
    influence: int
    friends: int


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Everything that a platform's sources say, after cleaning.

    Args:
        item_ids: Original ids; position is the item number. Public.
        item_titles: Short public name per item (its id where there is no title).
        item_keys: Declared key per item, with its kind ("isbn:9780306406157"), by which platforms find out what they have in
            common; '' for an item that has none. Public.
        item_text: Source name -> one text per item ('' where the source says nothing), most
            important source first. Public.
        item_elsewhere: Source name (knowledge) -> what other platforms know of each item's entities, one text per item. Public.
        item_attributes: Attribute -> one value per item, by which lists are filtered ('' where there is none); several values are
            separated by commas. Public.
        item_vectors: Source name -> vectors per item. Public.
        user_ids: Original ids; position is the user number. Private.
        interactions: Private.
        user_text: Source name (profiles) -> one text per user. Private.
        notes: Source name (reviews, tags) -> notes. Private unless they say otherwise.
        user_vectors: Source name -> vectors per user. Private.
        ties: Source name -> social ties. Private.
        reports: What reading gave, in the order of the platform file.
        catalogue_public: Whether items, their order, titles, texts and vectors come from public tables alone. Else they are made
            of users' rows, and must not leave the platform.
    """

    platform: str
    item_ids: Sequence[str]
    item_titles: Sequence[str]
    item_keys: Sequence[str]
    item_text: Mapping[str, Sequence[str]]
    user_ids: Sequence[str]
    interactions: Interactions
    item_elsewhere: Mapping[str, Sequence[str]] = field(default_factory=dict)
    item_attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    item_vectors: Mapping[str, Vectors] = field(default_factory=dict)
    user_text: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Mapping[str, Notes] = field(default_factory=dict)
    user_vectors: Mapping[str, Vectors] = field(default_factory=dict)
    ties: Mapping[str, Ties] = field(default_factory=dict)
    reports: Sequence[SourceReport] = ()
    catalogue_public: bool = False

    @property
    def users(self) -> int:
        """Number of users that have at least one interaction; exact, so private."""
        return len(self.user_ids)

    @property
    def vector_widths(self) -> dict[str, int]:
        """Source -> width of its vectors; a source that is both an item's and a user's must be named twice."""
        return {name: vectors.values.shape[1] for name, vectors in {**self.item_vectors, **self.user_vectors}.items()}

    @property
    def items(self) -> int:
        """Number of items in the public catalogue."""
        return len(self.item_ids)
