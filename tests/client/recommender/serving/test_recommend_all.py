"""The best items of a block of users, against a plain sort of each user's candidates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client.examples.split import Ragged, ragged
from client.recommender.serving import recommend_all
from client.recommender.serving.recommend_all import best_items

USERS, ITEMS = 20, 1000
"""So many items that numpy's partition takes any of equal scores."""


def some_of(random: np.random.Generator, rows: int, most: int) -> Ragged:
    return ragged([random.choice(ITEMS, random.integers(0, most + 1), replace=False).astype(np.int32) for _ in range(rows)])


@pytest.mark.parametrize("values", [1, 2, 5, 10**6], ids=lambda values: f"{values} different scores")
@pytest.mark.parametrize("top", [1, 4, ITEMS - 1, ITEMS, ITEMS + 20])
def test_they_are_the_first_of_all_candidates_in_order(values: int, top: int) -> None:
    """However many have one score, and however few are left: what a user has met, and its twins, is never among them."""
    random = np.random.default_rng(values)
    scores = random.integers(0, values, (USERS, ITEMS)).astype(np.float32)
    known, twins = some_of(random, USERS, ITEMS), some_of(random, ITEMS, 1)
    model: Any = SimpleNamespace(scores=lambda users: scores[users])
    shelf: Any = SimpleNamespace(items=ITEMS, known=known, twins=twins)
    users = random.permutation(USERS)[:15]
    found, what = best_items(model, shelf, users, top=top)
    assert found.shape == what.shape == (15, min(top, ITEMS))
    for row, user in enumerate(users):
        met = {*known[user].tolist(), *(twin for item in known[user] for twin in twins[item].tolist())}
        best = sorted(set(range(ITEMS)) - met, key=lambda item: (-scores[user, item], item))[:top]
        assert found[row].tolist() == best + [-1] * (min(top, ITEMS) - len(best))
        assert what[row, : len(best)].tolist() == scores[user, best].tolist()


@pytest.mark.parametrize("items", [0, 1, 5_000, 10**7])
def test_blocks_are_all_users_once_and_as_large_as_memory_allows(items: int) -> None:
    blocks = list(recommend_all._blocks(7, 1_300, items))
    assert np.concatenate(blocks).tolist() == list(range(7, 1_300))
    largest = max(map(len, blocks))
    assert largest <= recommend_all._USERS_AT_ONCE
    assert largest == 1 or largest * items <= recommend_all._SCORES_AT_ONCE
    assert largest in (1, recommend_all._USERS_AT_ONCE) or (largest + 1) * items > recommend_all._SCORES_AT_ONCE
