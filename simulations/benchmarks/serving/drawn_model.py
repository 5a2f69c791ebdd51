"""A fitted model of many items, of drawn numbers: what an answer takes does not depend on what the numbers say.

Its arrays have the shapes that a fit gives on so many items (`client/recommender/item_ridge.py`, `evidence.py`): the inverse of
the 8,192 popular items, 64 neighbours of every rare one in both directions, 64 most alike items by words and by texts, a taste
map of 64 directions, popularity. Histories follow Zipf's law.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from numpy.random import Generator
from numpy.typing import NDArray

from client.examples.split import Ragged, offsets_of
from client.recommender.evidence import ALIKE, TEXT, WORDS, Alike, Evidence, Popular
from client.recommender.histories import Histories, Sparse
from client.recommender.item_neighbours import NEIGHBOURS
from client.recommender.item_preferences import ItemPreferences
from client.recommender.item_ridge import MOST_ITEMS, ItemRidge
from client.recommender.lists.person import Person
from client.recommender.lists.recommended import ScoresInParts
from client.recommender.platform_model import PlatformModel
from client.recommender.serving.kept_model import Shelf, digests_of
from client.recommender.taste import OWN_DIRECTIONS, Taste, TasteOnItems
from client.serving.messages import ModelName
from client.serving.nearest_taste import for_serving

_MEAN_HISTORY = 25
KINDS = ("books", "garden", "kitchen", "music", "sports", "tools", "toys", "travel")


class DrawnModels:
    """Models as a server has them.

    Args:
        items, users: How many.
    """

    default: ModelName = "own"
    same_as_own = False

    def __init__(self, items: int, users: int) -> None:
        random = np.random.default_rng(0)
        self.shelf = _shelf(random, items, users)
        histories = Histories(liked=self.shelf.liked, items=items, ordered=True)
        evidence: list[tuple[float, Evidence]] = [
            (0.01, Popular(histories)),
            (0.05, _alike(random, items, WORDS)),
            (0.05, _alike(random, items, TEXT)),
            (0.02, _taste(random, items)),
        ]
        preferences = ItemPreferences(model=_ridge(random, items), half_life=8.0, share=0.0, gain=0.0)
        model = PlatformModel(histories=histories, preferences=preferences, evidence=evidence, gains=np.zeros(1))
        self._model = for_serving(model)

    @property
    def names(self) -> list[ModelName]:
        """The one that there is."""
        return [self.default]

    def model_for(self, name: ModelName, person: Person) -> ScoresInParts:
        """The same for everybody."""
        return self._model


def _shelf(random: Generator, items: int, users: int) -> Shelf:
    lengths = np.clip(random.lognormal(np.log(_MEAN_HISTORY), 0.8, users).astype(np.int64), 1, 500)
    popularity = np.cumsum((random.permutation(items) + 1.0) ** -0.9)
    drawn = np.searchsorted(popularity / popularity[-1], random.random(int(lengths.sum()))).astype(np.int32)
    ids = [f"c{number}" for number in range(users)]
    digests = digests_of(ids)
    order = np.argsort(digests, kind="stable")
    rows = np.split(drawn, np.cumsum(lengths)[:-1])
    unique = [row[np.sort(np.unique(row, return_index=True)[1])] for row in rows]
    offsets = offsets_of(np.array([len(row) for row in unique]))
    liked = Ragged(offsets=offsets, values=np.concatenate(unique))
    known = Ragged(offsets=offsets, values=np.concatenate([np.sort(row) for row in unique]))
    kinds = random.integers(len(KINDS), size=items)
    return Shelf(
        item_ids=[f"p{number}" for number in range(items)],
        item_titles=[f"{KINDS[kind]} product number {number}" for number, kind in enumerate(kinds.tolist())],
        item_keys=[""] * items,
        user_ids=ids,
        user_digest=digests[order],
        user_number=order,
        profiled=np.zeros(users, np.bool_),
        liked=liked,
        known=known,
        weight=None,
        ordered=True,
        attributes={
            "category": [KINDS[kind] for kind in kinds.tolist()],
            "price": [f"{value:.2f}" for value in random.lognormal(3, 1, items)],
        },
    )


def _ridge(random: Generator, items: int) -> ItemRidge:
    popular = np.sort(random.permutation(items)[: min(MOST_ITEMS, items)])
    rare = np.setdiff1d(np.arange(items), popular)
    inverse = random.standard_normal((len(popular), len(popular)), np.float32) * np.float32(1e-4)
    diagonal = np.full(len(popular), 1e-2, np.float32)
    inverse[np.diag_indices(len(popular))] = diagonal
    tensors: dict[str, NDArray[Any]] = {"active": np.arange(items), "popular": popular, "diagonal": diagonal, "inverse": inverse}
    if len(rare):
        near = popular[random.integers(len(popular), size=(len(rare), NEIGHBOURS))].ravel()
        far = np.repeat(rare, NEIGHBOURS)
        values = random.random(2 * len(far), np.float32) * np.float32(0.1)
        both = scipy.sparse.csr_matrix((values, (np.append(near, far), np.append(far, near))), shape=(items, items))
        tensors |= {"rare.data": both.data, "rare.indices": both.indices, "rare.indptr": both.indptr}
    return ItemRidge.of_tensors(tensors, ridge=100.0, items=items)


def _alike(random: Generator, items: int, name: str) -> Alike:
    most = min(ALIKE, items - 1)
    nearest: Sparse = scipy.sparse.csr_matrix(
        (
            random.random(items * most, np.float32),
            random.integers(items, size=items * most),
            np.arange(0, items * most + 1, most),
        ),
        shape=(items, items),
    )
    return Alike(nearest, name=name, nearest=nearest)


def _taste(random: Generator, items: int) -> Taste:
    vectors = random.standard_normal((items, OWN_DIRECTIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = random.standard_normal((OWN_DIRECTIONS, OWN_DIRECTIONS))
    return Taste(TasteOnItems(directions=vectors, seen=vectors, matrix=matrix @ matrix.T), name="taste")
