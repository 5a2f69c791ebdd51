"""Taste as evidence: the map's scores, a user's own row out of them, and in the global model nobody else's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from client.examples.split import ragged
from client.privacy.taste_release import taste_of
from client.recommender.evidence import NOBODY, SHARED_TASTE, TEXT, ScoredFor
from client.recommender.global_model import GlobalModel
from client.recommender.histories import Histories
from client.recommender.taste import Taste, TasteOnItems, own_taste
from shared.base.settings import ModelSettings
from shared.preferences.taste_directions import item_directions

RANDOM = np.random.default_rng(5)
ITEMS = 20
VECTORS = RANDOM.normal(size=(ITEMS, 16)).astype(np.float32)
LIKED = [RANDOM.permutation(ITEMS)[:count].astype(np.int32) for count in (6, 4, 1, 0, 9, 5, 3)]
HISTORIES = Histories(liked=ragged(LIKED), items=ITEMS, ordered=True)
USERS = np.arange(len(LIKED))


def asked(*, without: bool, users: np.ndarray = USERS) -> ScoredFor:
    return ScoredFor(history=HISTORIES.recent(USERS, half_life=4.0), users=users, without=without)


def map_of(users: list[np.ndarray]) -> np.ndarray:
    directions = item_directions(VECTORS, 16)
    return sum((taste_of(directions[liked]) for liked in users), start=np.zeros((16, 16)))


def test_a_score_is_the_sum_over_the_history_of_the_map() -> None:
    taste = own_taste(HISTORIES, VECTORS).on_items
    np.testing.assert_allclose(taste.matrix, map_of(LIKED), atol=1e-9)
    history = HISTORIES.recent(USERS, half_life=4.0).toarray()
    mapped = taste.seen @ taste.matrix @ taste.seen.T
    assert np.linalg.norm(mapped, 2) > 0
    np.testing.assert_allclose(taste.scores(HISTORIES.recent(USERS, half_life=4.0)), history @ mapped, atol=1e-5)


def test_a_left_out_users_own_row_is_not_in_the_scores() -> None:
    found, everybody = own_taste(HISTORIES, VECTORS), own_taste(HISTORIES, VECTORS).on_items
    scores = found.scores(asked(without=True))
    for user in USERS:
        left = map_of([liked for other, liked in enumerate(LIKED) if other != user])
        taste = TasteOnItems(directions=everybody.directions, seen=everybody.seen, matrix=left)
        expected = np.maximum(taste.scores(HISTORIES.recent(USERS[user : user + 1], half_life=4.0)), 0.0)
        np.testing.assert_allclose(scores[user], expected[0], atol=1e-5)
    assert not np.allclose(scores, found.scores(asked(without=False)))


def test_who_is_in_no_table_and_a_released_map_have_no_row_to_leave_out() -> None:
    own = own_taste(HISTORIES, VECTORS)
    nobody = np.full(len(USERS), NOBODY)
    np.testing.assert_array_equal(own.scores(asked(without=True, users=nobody)), own.scores(asked(without=False, users=nobody)))
    released = Taste(own.on_items, name=SHARED_TASTE)
    np.testing.assert_array_equal(released.scores(asked(without=True)), released.scores(asked(without=False)))


def test_it_speaks_against_nothing_and_says_what_each_item_adds() -> None:
    own = own_taste(HISTORIES, VECTORS)
    assert (own.scores(asked(without=True)) >= 0).all()
    somebody = ScoredFor(history=HISTORIES.recent(np.array([0]), half_life=4.0), users=np.array([0]))
    scores, adds = own.for_one(somebody)
    np.testing.assert_array_equal(scores, own.scores(somebody)[0])
    each = csr_matrix(np.diag(somebody.history.data) @ np.eye(ITEMS)[somebody.history.indices])
    by_item = adds(np.arange(ITEMS))
    np.testing.assert_allclose(by_item, np.maximum(own.on_items.scores(each), 0), atol=1e-6)
    assert by_item.shape == (6, ITEMS) and by_item.any()


class TestGlobal:
    @pytest.fixture
    def taste(self) -> TasteOnItems:
        matrix = RANDOM.normal(size=(8, 8))
        return TasteOnItems.of(item_directions(VECTORS, 8), matrix + matrix.T)

    def test_alone_it_is_likeness_and_taste_over_the_temperature(self, taste: TasteOnItems) -> None:
        model = GlobalModel(HISTORIES, preferences=None, text=None, taste=taste)
        history = HISTORIES.recent(USERS, half_life=8.0).toarray()
        mean = history / np.maximum(history.sum(1, keepdims=True), 1e-9) @ taste.directions
        mapped = np.linalg.lstsq(taste.directions, taste.seen, rcond=None)[0]
        expected = mean @ (np.eye(8) + mapped @ taste.matrix @ mapped.T) @ taste.directions.T / ModelSettings().temperature
        np.testing.assert_allclose(model.scores(USERS), expected, atol=1e-4)
        parts = model.parts(Histories(liked=ragged(LIKED[:1]), items=ITEMS, ordered=True), user=0)
        assert [part.name for part in parts] == [TEXT, SHARED_TASTE]
        np.testing.assert_allclose(sum(part.scores for part in parts), model.scores(USERS[:1])[0], atol=1e-5)

    def test_it_reads_no_other_users_row(self, taste: TasteOnItems) -> None:
        other = Histories(liked=ragged([LIKED[0], *(LIKED[1] for _ in LIKED[1:])]), items=ITEMS, ordered=True)
        here, there = (GlobalModel(one, preferences=None, text=None, taste=taste) for one in (HISTORIES, other))
        assert np.array_equal(here.scores(USERS[:1]), there.scores(USERS[:1]))

    def test_of_whom_nothing_is_known_nothing_is_said(self, taste: TasteOnItems) -> None:
        model = GlobalModel(HISTORIES, preferences=None, text=None, taste=taste)
        assert not model.scores_of(Histories(liked=ragged([np.zeros(0, np.int32)]), items=ITEMS, ordered=True)).any()
