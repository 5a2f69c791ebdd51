"""What speaks for an item beside which items are liked together: each a named part of its score, none below 0.

Measured on held-out items of platforms of films, music, books and anime: words in common gain most where users are few, and for
items that few have liked; popularity gains for users with 1 to 3 items; friends gain a little on the music site. An encoder's
vectors gain beside words once their mean is taken off (films dealt to 8 platforms: NDCG@10 .104 to .110). Recent likes counting
more in popularity gained nowhere, nor did logarithms of counts against their square roots; weights of their own for users with
few items gained on some platforms what they lost on others. So none of these is here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from client.examples.split import entry_rows
from client.recommender.histories import Histories, MetEntries, Sparse, one_by_one
from client.sources.tables import Tables, Ties

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
ByItem = Callable[[Numbers], Floats]
"""Called with some items, int64 (m,): what each item of one history adds to them, float32 (items of the history, m), in the order
of the history's entries."""

NOBODY = -1
"""In the place of a user's number: somebody who is in no table."""
POPULARITY, POOLED, WORDS, FRIENDS = "popularity", "popularity elsewhere", "words", "friends"
TEXT, ADAPTED = "text", "text as trained together"
ELSEWHERE = "known elsewhere"
"""Of the entities that items are or have, by other platforms' public catalogues."""
TASTE, SHARED_TASTE = "taste", "taste as summed together"
VECTORS = "vectors of {}"
"""A source of item vectors, as of pictures."""
MANY_ITEMS, ALIKE = 8192, 64
"""Items above which each has so many that it is alike with."""
_ITEMS_AT_ONCE = 256
_COMMON = 0.3
"""A word in more than this part of the items tells none from another."""


@dataclass(frozen=True, kw_only=True)
class ScoredFor:
    """Whom items are scored for.

    Args:
        history: (n, items). Weight of each item that is known of them.
        users: int64 (n,). Their numbers, `NOBODY` for somebody who is in no table.
        without: Whether a user's own row is left out of what is known of all users: what is to be predicted may be in it.
    """

    history: Sparse
    users: Numbers
    without: bool = False


class Evidence(Protocol):
    """A part of the score."""

    @property
    def name(self) -> str:
        """What people read."""

    def scores(self, asked: ScoredFor) -> Floats:
        """Not below 0, float32 (n, items)."""

    def for_one(self, asked: ScoredFor) -> tuple[Floats, ByItem | None]:
        """Of one person: `scores`, float32 (items,), and what the items of their history add to them.

        None where the score is no sum over the history.
        """


@dataclass(frozen=True)
class Popular:
    """The square root of how many of the platform's users like an item, over the largest."""

    histories: Histories
    name: str = POPULARITY

    @cached_property
    def counts(self) -> Floats:
        """How many users like each item, float32 (items,)."""
        return np.bincount(self.histories.liked.values, minlength=self.histories.items).astype(np.float32)

    def scores(self, asked: ScoredFor) -> Floats:
        """As `Evidence`."""
        if not asked.without:
            return np.broadcast_to(self._shares, (len(asked.users), len(self.counts)))
        scores = np.tile(self.counts, (len(asked.users), 1))
        row, _, item = self.histories.liked.entries(asked.users)
        np.subtract.at(scores, (row, item), np.float32(1.0))
        return self._of_most(scores)

    def for_one(self, asked: ScoredFor) -> tuple[Floats, None]:
        """As `Evidence`."""
        return self.scores(asked)[0], None

    @cached_property
    def _shares(self) -> Floats:
        return self._of_most(self.counts)

    def _of_most(self, counts: Floats) -> Floats:
        shares: Floats = np.sqrt(counts / np.float32(max(float(self.counts.max(initial=0.0)), 1.0)))
        return shares


@dataclass(frozen=True)
class PopularElsewhere:
    """The square root of a released popularity, over the largest; 0 for an item that is not released.

    Args:
        released: float32 (items,), NaN where it is not known.
    """

    released: Floats = field(repr=False)
    name: str = POOLED

    def scores(self, asked: ScoredFor) -> Floats:
        """As `Evidence`."""
        return np.broadcast_to(self._shares, (len(asked.users), len(self.released)))

    def for_one(self, asked: ScoredFor) -> tuple[Floats, None]:
        """As `Evidence`."""
        return self.scores(asked)[0], None

    @cached_property
    def _shares(self) -> Floats:
        known = np.maximum(np.nan_to_num(self.released), 0.0)
        return np.sqrt(known / max(float(known.max(initial=0.0)), 1e-9)).astype(np.float32)


class Alike:
    """Cosines of the vectors of an item and of each in the history, added up by the history's weights; no user is in them.

    Of many items, each counts as alike with the `ALIKE` that are most alike with it.

    Args:
        vectors: (items, width), rows of length 1 or 0; sparse or not.
        nearest: What `nearest` gave for them, where it is at hand.
    """

    def __init__(self, vectors: Sparse | Floats, *, name: str, nearest: Sparse | None = None) -> None:
        self.vectors, self.name = vectors, name
        if nearest is not None:
            self.nearest = nearest

    @cached_property
    def nearest(self) -> Sparse | None:
        """(items, items), what each item of a history adds; None where items are few enough for all of it."""
        return most_alike(self.vectors, ALIKE) if self.vectors.shape[0] > MANY_ITEMS else None

    def scores(self, asked: ScoredFor) -> Floats:
        """As `Evidence`."""
        if self.nearest is None:
            return self._alike(asked.history, self.vectors)
        # None of it is below 0.
        return np.asarray((asked.history @ self.nearest).toarray(), np.float32)

    def for_one(self, asked: ScoredFor) -> tuple[Floats, ByItem]:
        """As `Evidence`."""
        if self.nearest is None:
            each = one_by_one(asked.history)
            return self.scores(asked)[0], lambda items: self._alike(each, self.vectors[items])
        met = MetEntries.of(asked.history, self.nearest)
        return met.total(), met.by_item

    def _alike(self, history: Sparse, vectors: Sparse | Floats) -> Floats:
        likeness = (history @ self.vectors) @ vectors.T
        dense = likeness.toarray() if scipy.sparse.issparse(likeness) else likeness
        # Vectors of an encoder may point away from each other; what is unlike speaks against nothing.
        scores = np.asarray(dense, np.float32)
        return np.maximum(scores, np.float32(0.0), out=scores)


class FriendsLike:
    """The part of a user's friends who like an item; nothing for users without friends.

    Args:
        friends: 1 for each friend, (users, users), where it is at hand.
    """

    name = FRIENDS

    def __init__(self, histories: Histories, ties: Mapping[str, Ties], *, friends: Sparse | None = None) -> None:
        self._rows = histories.rows()
        if friends is not None:
            self.friends: Sparse = friends
            return
        self.friends = scipy.sparse.csr_matrix((histories.users, histories.users), dtype=np.float32)
        for named in ties.values():
            user = entry_rows(named.offsets)
            there = (named.friend >= 0) & (named.friend != user)
            ones = np.ones(int(there.sum()), np.float32)
            self.friends = self.friends + scipy.sparse.csr_matrix(
                (ones, (user[there], named.friend[there])), shape=self.friends.shape
            )
        self.friends.data[:] = 1.0

    def scores(self, asked: ScoredFor) -> Floats:
        """As `Evidence`."""
        known = asked.users != NOBODY
        friends = self.friends[np.where(known, asked.users, 0)] if self._rows.shape[0] else self.friends[:0]
        scores = np.zeros((len(asked.users), self._rows.shape[1]), np.float32)
        if friends.shape[0]:
            many = np.maximum(friends.sum(1).A1, 1.0)
            weight = scipy.sparse.diags((known / many).astype(np.float32))
            scores += (weight @ (friends @ self._rows)).toarray()
        return scores

    def for_one(self, asked: ScoredFor) -> tuple[Floats, None]:
        """As `Evidence`."""
        return self.scores(asked)[0], None


def most_alike(vectors: Sparse | Floats, most: int) -> Sparse:
    """For every item the greatest of its positive cosines with others, float32 (items, items)."""
    count = vectors.shape[0]
    values, columns, lengths = [], [], []
    turned: Any = scipy.sparse.csr_matrix(vectors.T) if scipy.sparse.issparse(vectors) else vectors.T
    for begin in range(0, count, _ITEMS_AT_ONCE):
        likeness: Any = vectors[begin : begin + _ITEMS_AT_ONCE] @ turned
        block = np.asarray(likeness.toarray() if scipy.sparse.issparse(likeness) else likeness, np.float32)
        block[np.arange(len(block)), begin + np.arange(len(block))] = 0.0
        near = np.sort(np.argpartition(block, count - most, axis=1)[:, count - most :], axis=1)
        cosines = np.take_along_axis(block, near, axis=1)
        found = cosines > 0
        values.append(cosines[found])
        columns.append(near[found].astype(np.int32))
        lengths.append(found.sum(1))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return scipy.sparse.csr_matrix((np.concatenate(values), np.concatenate(columns), offsets), shape=(count, count))


def centred(vectors: Floats) -> Floats:
    """An encoder's vectors without what all have in common, of length 1, float32 (items, width).

    An encoder's vectors lie in a narrow cone (Ethayarajh 2019, "How contextual are contextualized word representations?"), so
    that cosines of any two are high.
    """
    moved = vectors - vectors.mean(0)
    unit: Floats = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-9)
    return unit.astype(np.float32)


def source_vectors(tables: Tables) -> dict[str, Floats]:
    """Source of item vectors -> its vectors without what all have in common, of length 1, 0 where an item has none.

    Numbers of a source of items, as prices, are no such source: they are in its texts.
    """
    found = {}
    for name, own in tables.item_vectors.items():
        if name not in tables.item_text and own.present.any():
            found[name] = np.zeros(own.values.shape, np.float32)
            found[name][own.present] = centred(own.values[own.present])
    return found


def elsewhere_vectors(tables: Tables) -> Sparse | None:
    """What other platforms know of the items' entities, as `word_vectors`; None where nobody knows anything."""
    texts = list(tables.item_elsewhere.values())
    return text_vectors(texts) if any(map(any, texts)) else None


def word_vectors(tables: Tables) -> Sparse:
    """Words of the items' texts weighted by log(items / items with the word), of length 1, float32 (items, words).

    Names of authors, categories and brands are words of these texts, and the rarer the more they count.
    """
    return text_vectors(list(tables.item_text.values()) or [tables.item_titles])


def text_vectors(sections: Sequence[Sequence[str]]) -> Sparse:
    """The same of texts.

    Args:
        sections: One text per item each.
    """
    words = [list(dict.fromkeys(re.findall(r"\w+", " ".join(texts).lower()))) for texts in zip(*sections, strict=True)]
    times = Counter(word for some in words for word in some)
    most = max(2.0, _COMMON * len(words))
    number = {word: place for place, word in enumerate(sorted(word for word, count in times.items() if 2 <= count <= most))}
    entries = [(item, number[word]) for item, some in enumerate(words) for word in some if word in number]
    item, word = np.asarray(entries, np.int64).reshape(-1, 2).T
    rarity = np.log(len(words) / np.maximum([times[name] for name in number], 1)).astype(np.float32)
    vectors = scipy.sparse.csr_matrix((rarity[word], (item, word)), shape=(len(words), len(number)), dtype=np.float32)
    length = np.sqrt(vectors.multiply(vectors).sum(1).A1)
    unit: Sparse = scipy.sparse.diags((1.0 / np.maximum(length, 1e-9)).astype(np.float32)) @ vectors
    return unit.tocsr()
