"""Ids that differ in capital and small letters alone, or in forms of the same characters: counted for people, never joined.

Whether they are one is the platform file's to say (`folded` of `[ids]`). Of short random ids of both kinds of letters some differ
so by chance, and of these nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import scipy.special  # type: ignore[import-untyped]

from client.sources.ids import folded_ids

_CODES = 0.2
"""Share of the ids with a capital letter right behind a small one, from which on letters may be random."""
_SURE = 0.01
"""Largest probability, of as many alike by chance, at which chance is no explanation."""
_LOOKED_AT = 100_000


@dataclass(frozen=True, kw_only=True)
class AlikeIds:
    """Ids that folding would join.

    Args:
        count: Of ids that would become another, or of rows.
        pair: Two of them.
    """

    count: int
    pair: tuple[str, str]

    cure: ClassVar[str] = (
        "where they are the same, folded = true under [ids] in the platform file joins them; where letters matter in these ids, "
        "leave them so"
    )

    def words(self) -> str:
        """What they differ in, with an example."""
        one, other = self.pair
        return f"capital and small letters or in forms of characters alone, such as {one!r} and {other!r}"


def alike_ids(ids: pl.Series) -> AlikeIds | None:
    """How many of some unique ids are another one in other letters; None if there is none, or chance explains as many.

    >>> alike_ids(pl.Series(["ann@x.org", "Ann@x.org", "bob@x.org"]))
    AlikeIds(count=1, pair=('Ann@x.org', 'ann@x.org'))
    """
    groups = pl.DataFrame({"id": ids, "folded": folded_ids(ids)})
    count = groups.height - groups["folded"].n_unique()
    if not count or _by_chance(count, ids, None):
        return None
    several = groups.filter(pl.col("folded").is_duplicated())
    first, second = several.filter(pl.col("folded") == several["folded"].min())["id"].sort().head(2)
    return AlikeIds(count=count, pair=(first, second))


def found_in_other_letters(unknown: pl.Series, known: pl.Series) -> AlikeIds | None:
    """How many rows hold an id that is a known one in other letters; None if none does, or chance explains as many.

    Args:
        unknown: Ids of rows, none of them known.
        known: Unique ids.
    """
    counts = pl.DataFrame({"id": unknown.cast(pl.String).drop_nulls()}).group_by("id").len()
    spelled = pl.DataFrame({"known": known, "folded": folded_ids(known)}).unique("folded", keep="first")
    found = counts.with_columns(folded_ids(counts["id"]).alias("folded")).join(spelled, on="folded").sort("id")
    if not found.height or _by_chance(found.height, counts["id"], known):
        return None
    return AlikeIds(count=int(found["len"].sum()), pair=(found["id"][0], found["known"][0]))


def _by_chance(count: int, ids: pl.Series, others: pl.Series | None) -> bool:
    """Whether so many pairs alike are what random letters give, in some ids or between them and others.

    The letters of two random ids of one length agree, at each place by itself, with the squared frequencies of what is there; the
    number of pairs that do is about Poisson's.
    """
    if float(ids.str.contains("[a-z][0-9]*[A-Z]").mean() or 0.0) < _CODES:  # type: ignore[arg-type]
        return False
    expected = 0.0
    lengths = ids.filter(~ids.str.contains(r"[^\x00-\x7F]")).str.len_bytes()
    plain = ids.filter(~ids.str.contains(r"[^\x00-\x7F]"))
    beside = None if others is None else others.str.len_bytes().value_counts(name="ids")
    for length, many in lengths.value_counts(name="ids").iter_rows():
        second = (many - 1) / 2 if beside is None else int(beside.filter(pl.col(others.name) == length)["ids"].sum())  # type: ignore[union-attr]
        some = plain.filter(lengths == length).head(_LOOKED_AT)
        expected += many * second * _agreement(some, length)
    return bool(scipy.special.gammainc(count, expected) >= _SURE) if expected else False


def _agreement(ids: pl.Series, length: int) -> float:
    """Probability that two of some ids of one length are alike in other letters, their places being independent."""
    letters = np.frombuffer("".join(ids.to_list()).encode(), np.uint8).reshape(-1, length)
    exact = lowered = 1.0
    for place in range(length):
        share = np.bincount(letters[:, place], minlength=128) / len(letters)
        exact *= float(share @ share)
        share[97:123] += share[65:91]
        share[65:91] = 0.0
        lowered *= float(share @ share)
    return lowered - exact
