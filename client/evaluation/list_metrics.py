"""Metrics of the lists that people are shown, by name, at any length k. One entry in `LIST_METRICS` is all that a new one takes.

What leaves a platform is in `shared/protocol/quality.py`; these stay with its own people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.typing import NDArray

from shared.protocol.quality import hit_rate_at, ndcg_at

Floats = NDArray[np.float64]
Lists = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class ItemFacts:
    """What is known of the items that lists are made of.

    Args:
        popularity: float64 (items,). Share of users who like each, above 0 and at most 1.
        vectors: (items, width), sparse. Of length 1 or 0; what is alike has a cosine near 1.
    """

    popularity: Floats = field(repr=False)
    vectors: Any = field(repr=False)

    def __len__(self) -> int:
        return len(self.popularity)


@dataclass(frozen=True, kw_only=True)
class JudgedLists:
    """What some users are shown, and the rank of what they like next.

    Args:
        items: int32 (users, longest). Best first, -1 where nothing is left.
        rank: float64 (users,). Of the held-out item among the candidates, from 1; ties count half.
    """

    items: Lists = field(repr=False)
    rank: Floats = field(repr=False)

    def __len__(self) -> int:
        return len(self.rank)


@dataclass(frozen=True, kw_only=True)
class ListMetric:
    """One metric of lists of k items.

    Args:
        title: As people write it; {k} is the length.
        per_user: Lists, facts, k -> float64 (users,), NaN for a user of whom it says nothing; the mean is over the others.
            None for a metric of all users' lists together.
        pooled: Items of all lists, int32 (users, k), and facts -> a number from 0 to 1; None where the metric is a mean.
    """

    title: str
    per_user: Callable[[JudgedLists, ItemFacts, int], Floats] | None = None
    pooled: Callable[[Lists, ItemFacts], float] | None = None


def _reciprocal_rank(lists: JudgedLists, facts: ItemFacts, k: int) -> Floats:
    return np.where(lists.rank <= k, 1.0 / lists.rank, 0.0)


def _coverage(items: Lists, facts: ItemFacts) -> float:
    """The share of the catalogue that is in anybody's list (Ge et al. 2010, "Beyond accuracy")."""
    shown = np.zeros(len(facts) + 1, np.bool_)
    shown[items] = True  # the last place is that of -1
    return float(shown[:-1].sum()) / max(len(facts), 1)


def _diversity(lists: JudgedLists, facts: ItemFacts, k: int) -> Floats:
    """Mean of 1 - cosine over a list's pairs (Ziegler et al. 2005, "Improving recommendation lists").

    The sum of the cosines of all pairs follows from the length of the sum of the vectors.
    """
    items = lists.items[:, :k]
    row, place = np.nonzero(items >= 0)
    chosen = items[row, place]
    shown = scipy.sparse.csr_matrix((np.ones(len(row)), (row, chosen)), shape=(len(items), len(facts)))
    total = scipy.sparse.csr_matrix(shown @ facts.vectors)
    square = total.multiply(total).sum(1).A1
    own = scipy.sparse.csr_matrix(facts.vectors)
    own = own.multiply(own).sum(1).A1
    count = np.bincount(row, minlength=len(items))
    pairs = count * (count - 1) / 2.0
    alike = (square - shown @ own) / 2.0
    return np.where(pairs > 0, 1.0 - alike / np.maximum(pairs, 1.0), np.nan)


def _novelty(lists: JudgedLists, facts: ItemFacts, k: int) -> Floats:
    """Mean of -log2 of the share of users who like an item (Zhou et al. 2010; Vargas & Castells 2011), in bits."""
    items = lists.items[:, :k]
    shown = items >= 0
    bits = np.where(shown, -np.log2(facts.popularity[np.maximum(items, 0)]), 0.0).sum(1)
    return np.where(shown.any(1), bits / np.maximum(shown.sum(1), 1), np.nan)


LIST_METRICS: Mapping[str, ListMetric] = {
    "ndcg": ListMetric(title="NDCG@{k}", per_user=lambda lists, facts, k: ndcg_at(lists.rank, k)),
    "hr": ListMetric(title="HR@{k}", per_user=lambda lists, facts, k: hit_rate_at(lists.rank, k)),
    "mrr": ListMetric(title="MRR@{k}", per_user=_reciprocal_rank),
    "coverage": ListMetric(title="coverage@{k}", pooled=_coverage),
    "diversity": ListMetric(title="diversity@{k}", per_user=_diversity),
    "novelty": ListMetric(title="novelty@{k} (bits)", per_user=_novelty),
}


def item_facts(likes: NDArray[np.int64], vectors: Any, *, users: int) -> ItemFacts:
    """Facts of a platform's items.

    Args:
        likes: int64 (items,). Users who like each.
        vectors: (items, width), sparse, rows of length 1 or 0.
        users: Who could have liked them; one more like is added to each, so that no item is impossible.
    """
    return ItemFacts(popularity=np.minimum((likes + 1.0) / (users + 1.0), 1.0), vectors=scipy.sparse.csr_matrix(vectors))
