"""The index against all products: lists are the same but for few items, and what is shown is exact."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client.recommender.evidence import NOBODY, ScoredFor
from client.recommender.taste import Taste, TasteOnItems
from client.serving import nearest_taste
from client.serving.nearest_taste import LargestProducts, NearestTaste
from shared.base.errors import InputError

ITEMS, WIDTH = 6000, 48


@pytest.fixture(scope="module")
def taste() -> Taste:
    """Vectors in groups, as texts of one topic are, and a map that is no multiple of the identity."""
    random = np.random.default_rng(0)
    topics = random.normal(size=(80, WIDTH))
    vectors = topics[random.integers(80, size=ITEMS)] + 0.6 * random.normal(size=(ITEMS, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = random.normal(size=(WIDTH, WIDTH)) * np.geomspace(1, 0.05, WIDTH)
    return Taste(TasteOnItems.of(vectors, matrix @ matrix.T), name="taste")


def asked(seed: int, people: int = 40) -> ScoredFor:
    random = np.random.default_rng(seed)
    rows = np.repeat(np.arange(people), 8)
    history = csr_matrix((np.ones(len(rows), np.float32), (rows, random.integers(ITEMS, size=len(rows)))), shape=(people, ITEMS))
    return ScoredFor(history=history, users=np.full(people, NOBODY))


def test_in_single_precision_it_is_the_same(taste: Taste) -> None:
    exact = taste.scores(asked(1))
    np.testing.assert_allclose(NearestTaste(taste).scores(asked(1)), exact, atol=2e-5 * exact.max())


def test_the_index_finds_what_all_products_find(taste: Taste) -> None:
    pytest.importorskip("faiss")
    found, exact = NearestTaste(taste, exact_items=0).scores(asked(1)), taste.scores(asked(1))
    recalls = []
    for mine, all_ in zip(found, exact, strict=True):
        best = set(np.argsort(-all_)[:100].tolist())
        recalls.append(len(best & set(np.argsort(-mine)[:100].tolist())) / 100)
        counted = mine > 0
        np.testing.assert_allclose(mine[counted], all_[counted], rtol=1e-3, atol=1e-4 * all_.max())
    assert np.mean(recalls) >= 0.98 and np.min(recalls) >= 0.9
    assert (found > 0).sum(1).max() <= nearest_taste.FOUND


def test_an_index_of_other_vectors_is_seen(taste: Taste) -> None:
    """The check above fails where the index is wrong."""
    pytest.importorskip("faiss")
    exact = taste.scores(asked(1))
    wrong = LargestProducts(np.roll(taste.on_items.seen.astype(np.float32), 1, axis=0))
    _, items = wrong.search((asked(1).history @ (taste.on_items.seen @ taste.on_items.matrix)).astype(np.float32), 100)
    recall = np.mean(
        [len(set(np.argsort(-row)[:100].tolist()) & set(found.tolist())) / 100 for row, found in zip(exact, items, strict=True)]
    )
    assert recall < 0.9


def test_what_each_item_of_the_history_adds_is_the_map_s(taste: Taste) -> None:
    history = asked(2, people=1).history
    some = np.array([5, 17, 4000])
    alone = csr_matrix((history.data, history.indices, np.arange(history.nnz + 1)), shape=(history.nnz, ITEMS))
    expected = np.maximum(taste.on_items.scores(alone), 0)
    _, adds = NearestTaste(taste).for_one(asked(2, people=1))
    np.testing.assert_allclose(adds(some), expected[:, some], rtol=1e-5, atol=1e-6)


def test_without_the_library_it_is_said_how_to_get_it(taste: Taste, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return imports(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="serve-large"):
        NearestTaste(taste, exact_items=0)
