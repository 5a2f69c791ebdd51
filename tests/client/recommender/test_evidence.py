"""Parts of a score beside preferences: what they say, of whom, and what they leave out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client.examples.split import ragged
from client.recommender import evidence
from client.recommender.evidence import (
    NOBODY,
    WORDS,
    Alike,
    FriendsLike,
    Popular,
    PopularElsewhere,
    ScoredFor,
    centred,
    most_alike,
    word_vectors,
)
from client.recommender.histories import Histories
from client.sources.tables import Interactions, Tables, Ties

LIKED = [[0, 1, 2], [0, 1], [0], []]
HISTORIES = Histories(liked=ragged([np.asarray(row, np.int32) for row in LIKED]), items=5, ordered=True)


def asked(users: list[int], *, without: bool = False) -> ScoredFor:
    numbers = np.asarray(users)
    known = HISTORIES.recent(np.maximum(numbers, 0), half_life=None)
    return ScoredFor(history=known, users=numbers, without=without)


def test_popularity_counts_users_and_can_leave_out_the_one_it_is_for() -> None:
    popular = Popular(HISTORIES)
    assert popular.scores(asked([0, NOBODY])) ** 2 * 3 == pytest.approx(np.tile([3, 2, 1, 0, 0], (2, 1)))
    assert popular.scores(asked([0, 2], without=True)) ** 2 * 3 == pytest.approx(np.array([[2, 1, 0, 0, 0], [2, 2, 1, 0, 0]]))


def test_popularity_elsewhere_is_0_where_it_is_not_released() -> None:
    released = np.array([4, np.nan, -1, 1, 0], np.float32)
    assert PopularElsewhere(released).scores(asked([0])).tolist() == [[1.0, 0.0, 0.0, 0.5, 0.0]]
    assert not PopularElsewhere(np.full(5, np.nan, np.float32)).scores(asked([0])).any()


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_likeness_is_a_sum_over_the_history(form: str) -> None:
    vectors = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = Alike(vectors if form == "dense" else csr_matrix(vectors), name="text")
    history = csr_matrix(np.array([[0.5, 0, 1, 0, 0]], np.float32))
    somebody = ScoredFor(history=history, users=np.array([NOBODY]))
    scores, adds = alike.for_one(somebody)
    by_item = adds(np.arange(5))
    np.testing.assert_allclose(by_item, [0.5 * vectors @ vectors[0], vectors @ vectors[2]], rtol=1e-5)
    np.testing.assert_array_equal(adds(np.array([4, 1])), by_item[:, [4, 1]])
    np.testing.assert_array_equal(scores, alike.scores(somebody)[0])
    np.testing.assert_allclose(scores, by_item.sum(0), rtol=1e-5)


@pytest.mark.parametrize("most", [1, 3, 9])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_of_many_items_each_counts_as_alike_with_its_nearest(monkeypatch: pytest.MonkeyPatch, form: str, most: int) -> None:
    monkeypatch.setattr(evidence, "_ITEMS_AT_ONCE", 4)
    monkeypatch.setattr(evidence, "ALIKE", most)
    monkeypatch.setattr(evidence, "MANY_ITEMS", 9)
    vectors = centred(np.random.default_rng(2).normal(size=(10, 3)).astype(np.float32))
    cosines = vectors @ vectors.T - np.eye(10, dtype=np.float32)
    expected = np.zeros_like(cosines)
    for item, row in enumerate(cosines):
        near = [other for other in np.argsort(-row)[:most] if other != item and row[other] > 0]
        expected[item, near] = row[near]
    given = vectors if form == "dense" else csr_matrix(vectors)
    np.testing.assert_allclose(most_alike(given, most).toarray(), expected, atol=1e-6)
    history = csr_matrix(np.array([[0.5, 0, 1, *[0] * 7]], np.float32))
    alike, somebody = Alike(given, name="text"), ScoredFor(history=history, users=np.array([NOBODY]))
    scores, adds = alike.for_one(somebody)
    np.testing.assert_allclose(scores, 0.5 * expected[0] + expected[2], atol=1e-6)
    np.testing.assert_array_equal(scores, alike.scores(somebody)[0])
    np.testing.assert_allclose(adds(np.array([7, 2, 4])), np.array([0.5 * expected[0], expected[2]])[:, [7, 2, 4]], atol=1e-6)
    monkeypatch.setattr(evidence, "MANY_ITEMS", 10)
    assert Alike(given, name="text").nearest is None


def test_friends() -> None:
    ties = Ties(offsets=np.array([0, 3, 4, 4, 4]), friend=np.array([1, 2, -1, 1], np.int32), influence=0, friends=3)
    friends = FriendsLike(HISTORIES, {"one": ties, "again": ties})
    found = friends.scores(asked([0, 1, 3, NOBODY]))
    assert found.tolist() == [[1.0, 0.5, 0, 0, 0], [0] * 5, [0] * 5, [0] * 5]  # nobody is their own friend


def test_rare_words_tell_more() -> None:
    texts = ["red river", "red river", "red city", "red blue", "red old", "blue", "old", "city", "green", "grey"]
    none = Interactions(
        offsets=np.zeros(1, np.int64),
        item=np.zeros(0, np.int32),
        weight=np.zeros(0, np.float32),
        positive=np.zeros(0, np.bool_),
        time=None,
    )
    ids = [str(number) for number in range(len(texts))]
    tables = Tables(
        platform="p",
        item_ids=ids,
        item_titles=texts,
        item_keys=[""] * len(texts),
        item_text={"a": texts},
        user_ids=[],
        interactions=none,
    )
    vectors = word_vectors(tables).toarray()
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths[:8] == pytest.approx(1) and not lengths[8:].any()  # a word of one item is shared with none
    assert vectors[0] @ vectors[1] == pytest.approx(1) and vectors[0] @ vectors[6] == 0
    assert vectors.shape[1] == 4  # "red" is in half of them
    order = np.random.default_rng(0).permutation(len(texts))
    moved = word_vectors(replace(tables, item_text={"a": [texts[place] for place in order]})).toarray()
    np.testing.assert_allclose(moved @ moved.T, (vectors @ vectors.T)[order][:, order], atol=1e-6)
    assert word_vectors(replace(tables, item_text={"a": [""] * len(texts)})).shape == (10, 0)
    assert (
        not Alike(word_vectors(replace(tables, item_text={"a": [""] * 10})), name=WORDS)
        .scores(ScoredFor(history=csr_matrix((1, 10), dtype=np.float32), users=np.array([NOBODY])))
        .any()
    )


def test_centred_vectors_have_nothing_in_common() -> None:
    vectors = np.random.default_rng(0).normal(3.0, 1.0, (50, 8)).astype(np.float32)
    found = centred(vectors)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(found, centred(vectors)) and np.abs(found.mean(0)).max() < 0.2
    assert not centred(np.ones((3, 4), np.float32)).any()
