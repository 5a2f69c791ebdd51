"""The released parts alone, against their rules applied to one person and one item after the other."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from client.examples.split import ragged
from client.recommender.evidence import text_vectors
from client.recommender.global_model import GlobalModel
from client.recommender.histories import Histories
from client.recommender.released_preferences import released_on
from client.recommender.taste import TasteOnItems
from shared.base.settings import ModelSettings
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.taste_directions import item_directions

ITEMS, TEMPERATURE = 9, 0.25
RELEASED = [0, 2, 3, 5, 7]
RANDOM = np.random.default_rng(8)
FACTORS = RANDOM.random((12, 5)).astype(np.float32)
POPULARITY = np.array([4.0, 0.25, -1.0, 9.0, 1.0], np.float32)
LIKED = [[0, 5, 1], [3], [1, 4], [6, 8, 1, 4], [], [7, 2, 0, 6]]
HISTORIES = Histories(liked=ragged([np.asarray(row, np.int32) for row in LIKED]), items=ITEMS, ordered=True)
USERS = np.arange(len(LIKED))
VECTORS = RANDOM.normal(size=(ITEMS, 12)).astype(np.float32)
WORDS = text_vectors([["a b", "a c d", "b c", "e", "a e", "c d e", "d", "b d", "f f"]])
TASTE = TasteOnItems.of(item_directions(VECTORS, 4), np.diag([3.0, -1.0, 2.0, 0.5]))


class Text:
    """An adapter that reads who somebody is and the last item of their history."""

    temperature = TEMPERATURE

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        unit = random.normal(size=(ITEMS + len(LIKED) + 1, 4)).astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        self.items, self.people = unit[:ITEMS], unit[ITEMS:]

    def users(self, users: np.ndarray, latest: list[np.ndarray]) -> np.ndarray:
        read = [
            self.people[user] + (self.items[items[0]] if len(items) else 0) for user, items in zip(users, latest, strict=True)
        ]
        found: np.ndarray = np.stack(read).astype(np.float32) / 4
        return found


TEXT = Text()


def model(*, released: bool, text: bool, taste: bool, words: bool = False) -> GlobalModel:
    shared = SharedPreferences(items=np.arange(5, dtype=np.uint64), factors=FACTORS, popularity=POPULARITY, noise=0.4, users=90)
    hashes = np.full(ITEMS, 99, np.uint64)
    hashes[RELEASED] = np.arange(5)
    reads: Any = TEXT if text else None
    return GlobalModel(
        HISTORIES,
        preferences=released_on(shared, hashes) if released else None,
        text=reads,
        taste=TASTE if taste else None,
        words=WORDS if words else None,
    )


def by_hand(user: int, liked: list[int], *, released: bool, text: bool, taste: bool, words: bool) -> np.ndarray:
    """By the rules in the module's docstring; user -1 is in no table."""
    weight = {item: 0.5 ** ((len(liked) - 1 - place) / 8) for place, item in enumerate(liked)}
    alike = np.zeros(ITEMS)
    if text and (liked or user >= 0):
        alike += TEXT.items @ TEXT.users(np.array([user]), [np.asarray(liked[::-1])])[0]
    if taste and liked:
        mean = sum(weight[item] * np.eye(ITEMS)[item] for item in liked) / sum(weight.values())
        mapped = TASTE.seen @ TASTE.matrix @ TASTE.seen.T
        alike += mapped.T @ mean + (0 if text else TASTE.directions @ TASTE.directions.T @ mean)
    cosines = np.zeros(ITEMS)
    if words and liked:
        dense = WORDS.toarray()
        cosines = sum(weight[item] * dense @ dense[item] for item in liked) / sum(weight.values())
    if released and not text and not taste:
        alike = alike + cosines
    temperature = TEMPERATURE if text else ModelSettings().temperature
    if not released:
        return alike / temperature
    popularity = np.maximum(POPULARITY, 0)
    if (text or taste or words) and not set(liked) & set(RELEASED) and (liked or user >= 0):
        logs = np.full(ITEMS, np.log(0.5))
        logs[RELEASED] = np.log(np.maximum(POPULARITY, 0.5))
        return alike / temperature + logs
    told = np.zeros(5)
    for at in range(5):
        others = np.arange(5) != at
        ridge = Ridge(alpha=1.2 * 0.4 * np.sqrt(2 * 5), fit_intercept=False, solver="cholesky")
        coefficients = ridge.fit(FACTORS[:, others].astype(float), FACTORS[:, at].astype(float)).coef_
        told[at] = sum(c * weight.get(RELEASED[other], 0) for c, other in zip(coefficients, np.flatnonzero(others), strict=True))
    scores = min(0.0, told.min()) - 1.5 + alike
    scores[RELEASED] = told + 1e-4 * popularity / popularity.max() + 0.05 * cosines[RELEASED]
    return scores


KINDS = [kind for kind in product((True, False), repeat=4) if any(kind[:3])]


@pytest.mark.parametrize(("released", "text", "taste", "words"), KINDS)
def test_scores_are_what_the_rules_say(released: bool, text: bool, taste: bool, words: bool) -> None:
    rules = {"released": released, "text": text, "taste": taste, "words": words}
    made = model(**rules)
    here = np.stack([by_hand(user, liked, **rules) for user, liked in enumerate(LIKED)])
    np.testing.assert_allclose(made.scores(USERS), here, atol=2e-5)
    strangers = np.stack([by_hand(-1, liked, **rules) for liked in LIKED])
    np.testing.assert_allclose(made.scores_of(HISTORIES), strangers, atol=2e-5)
    for user, liked in enumerate(LIKED):
        one = Histories(liked=ragged([np.asarray(liked, np.int32)]), items=ITEMS, ordered=True)
        parts = made.parts(one, user=user)
        np.testing.assert_allclose(np.sum([part.scores for part in parts], axis=0), here[user], atol=2e-5)
        for part in parts:
            if part.by_item is not None and liked:
                np.testing.assert_allclose(part.by_item(np.arange(ITEMS)).sum(0), part.scores, atol=2e-5, err_msg=part.name)


def test_of_nothing_there_is_no_model() -> None:
    with pytest.raises(ValueError, match="nothing"):
        model(released=False, text=False, taste=False)
