"""Ids that differ in something that often means nothing: counted for people, never joined.

Whether they are one is the platform file's to say (`folded` of `[ids]`), or a matter of the export. Of short random ids of both
kinds of letters some differ in these alone by chance, and of these nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.special  # type: ignore[import-untyped]

from client.config.id_rules import IdRules
from client.sources.ids import folded_ids

_CODES = 0.2
"""Share of the ids with a capital letter right behind a small one, from which on letters may be random."""
_SURE = 0.01
"""Largest probability, of as many alike by chance, at which chance is no explanation."""
_LOOKED_AT = 100_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference between ids of which one is the other.

    Args:
        what: They differ in it alone.
        cure: What makes them one.
        without: Ids -> the ids without it.
    """

    what: str
    cure: str
    without: Callable[[pl.Series], pl.Series]


def _without_zeros(ids: pl.Series) -> pl.Series:
    return ids.str.replace(r"^0+(\d+)$", "$1")


LETTERS = Difference(
    what="capital and small letters or in forms of characters",
    cure="where they are the same, folded = true under [ids] in the platform file joins them; where letters matter in these ids, "
    "leave them so",
    without=folded_ids,
)
ZEROS = Difference(
    what="leading zeros",
    cure="where they are the same, a program has read some of them as numbers: export that column as text",
    without=_without_zeros,
)


@dataclass(frozen=True, kw_only=True)
class AlikeIds:
    """Ids that are others but for a difference.

    Args:
        count: Of ids that would become another, or of rows.
        pair: Two of them.
    """

    count: int
    pair: tuple[str, str]
    difference: Difference

    def words(self) -> str:
        """What they differ in, with an example."""
        one, other = self.pair
        return f"{self.difference.what} alone, such as {one!r} and {other!r}"


def _differences(rules: IdRules) -> Iterator[Difference]:
    yield from (() if rules.folded else (LETTERS,))
    yield ZEROS


def alike_ids(ids: pl.Series, rules: IdRules) -> list[AlikeIds]:
    """How many of some unique ids are another one but for a difference; none of which chance explains as many.

    >>> [found] = alike_ids(pl.Series(["ann@x.org", "Ann@x.org", "bob@x.org"]), IdRules())
    >>> found.count, found.pair
    (1, ('Ann@x.org', 'ann@x.org'))
    """
    found = []
    for difference in _differences(rules):
        groups = pl.DataFrame({"id": ids, "without": difference.without(ids)})
        count = groups.height - groups["without"].n_unique()
        if count and not (difference is LETTERS and _by_chance(count, ids, None)):
            several = groups.filter(pl.col("without").is_duplicated())
            first, second = several.filter(pl.col("without") == several["without"].min())["id"].sort().head(2)
            found.append(AlikeIds(count=count, pair=(first, second), difference=difference))
    return found


def known_but_for(unknown: pl.Series, known: pl.Series, rules: IdRules) -> list[AlikeIds]:
    """How many rows hold an id that is a known one but for a difference; none of which chance explains as many.

    Args:
        unknown: Ids of rows, none of them known.
        known: Unique ids.
    """
    counts = pl.DataFrame({"id": unknown.cast(pl.String).drop_nulls()}).group_by("id").len()
    alike = []
    for difference in _differences(rules):
        spelled = pl.DataFrame({"known": known, "without": difference.without(known)}).unique("without", keep="first")
        found = counts.with_columns(difference.without(counts["id"]).alias("without")).join(spelled, on="without").sort("id")
        if found.height and not (difference is LETTERS and _by_chance(found.height, counts["id"], known)):
            pair = (found["id"][0], found["known"][0])
            alike.append(AlikeIds(count=int(found["len"].sum()), pair=pair, difference=difference))
    return alike


def _by_chance(count: int, ids: pl.Series, others: pl.Series | None) -> bool:
    """Whether so many pairs alike are what random letters give, in some ids or between them and others.

    The letters of two random ids of one length agree, at each place by itself, with the squared frequencies of what is there; the
    number of pairs that do is about Poisson's.
    """
    if float(ids.str.contains("[a-z][0-9]*[A-Z]").mean() or 0.0) < _CODES:  # type: ignore[arg-type]
        return False
    plain = ids.filter(~ids.str.contains(r"[^\x00-\x7F]"))
    lengths = plain.str.len_bytes()
    beside = {} if others is None else dict(others.str.len_bytes().value_counts(name="ids").iter_rows())
    expected = 0.0
    for length, many in lengths.value_counts(name="ids").iter_rows():
        second = (many - 1) / 2 if others is None else beside.get(length, 0)
        expected += many * second * _agreement(plain.filter(lengths == length).head(_LOOKED_AT), length)
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
