"""Taste on many items: in single precision, and above `EXACT_ITEMS` for the items that an index finds nearest.

A taste map's score of item j is q' f_j, cut off below 0, with q from the history (`client/recommender/taste.py`). Of up to
`EXACT_ITEMS` items all are multiplied. Of more, an HNSW graph (Malkov & Yashunin 2020, "Efficient and robust approximate nearest
neighbor search using hierarchical navigable small world graphs") gives the `FOUND` with the largest product, and the others count
as 0. What is shown of an item stays exact: its score is the sum of its parts as they were counted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.recommender.evidence import ByItem, Floats, Numbers, ScoredFor
from client.recommender.platform_model import PlatformModel
from client.recommender.taste import Taste
from shared.base.errors import InputError

EXACT_ITEMS = 100_000
FOUND = 1000
_LINKS, _BUILD_EFFORT, _SEARCH_EFFORT = 32, 100, 1500


class LargestProducts:
    """The vectors with the largest products with a query, by an index.

    Args:
        vectors: float32 (items, width).

    Raises:
        InputError: faiss is not installed.
    """

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        faiss = _faiss(len(vectors))
        self._index: Any = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = _BUILD_EFFORT
        self._index.add(np.ascontiguousarray(vectors, np.float32))
        self._index.hnsw.efSearch = _SEARCH_EFFORT

    def search(self, queries: NDArray[np.float32], most: int) -> tuple[NDArray[np.float32], Numbers]:
        """Products and item numbers, (n, most) each, the largest first; -1 where fewer were found."""
        products, items = self._index.search(np.ascontiguousarray(queries, np.float32), most)
        return products, items


class NearestTaste:
    """A taste map as evidence, for serving alone: nothing is left out of it.

    Args:
        exact_items: Items up to which all of them are multiplied.
    """

    def __init__(self, taste: Taste, *, exact_items: int = EXACT_ITEMS) -> None:
        self._taste, self.name = taste, taste.name
        on_items = taste.on_items
        self._seen = on_items.seen.astype(np.float32)
        self._query = (on_items.seen @ on_items.matrix).astype(np.float32)
        self._index = LargestProducts(self._seen) if len(self._seen) > exact_items else None

    def scores(self, asked: ScoredFor) -> Floats:
        """As `client.recommender.evidence.Evidence`."""
        queries = np.asarray(asked.history @ self._query, np.float32)
        if self._index is None:
            found: Floats = queries @ self._seen.T
            return np.maximum(found, np.float32(0.0), out=found)
        scores = np.zeros((len(queries), len(self._seen)), np.float32)
        products, items = self._index.search(queries, min(FOUND, len(self._seen)))
        rows, places = np.nonzero((items >= 0) & (products > 0))
        scores[rows, items[rows, places]] = products[rows, places]
        return scores

    def for_one(self, asked: ScoredFor) -> tuple[Floats, ByItem]:
        """As `client.recommender.evidence.Evidence`."""
        return self.scores(asked)[0], self._taste.by_item(asked.history)


def for_serving(model: PlatformModel, *, exact_items: int = EXACT_ITEMS) -> PlatformModel:
    """The same model, quick for one person at a time.

    Raises:
        InputError: there are more than `exact_items` items, and faiss is not installed.
    """
    evidence = [
        (weight, NearestTaste(part, exact_items=exact_items) if isinstance(part, Taste) else part)
        for weight, part in model.evidence
    ]
    return replace(model, evidence=evidence)


def _faiss(items: int) -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError(
            f"{items:,} items need an index, and faiss is not installed", do="pip install 'fedfuse[serve-large]' (faiss-cpu)"
        ) from None
    return faiss
