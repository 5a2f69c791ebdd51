"""A platform takes out of a release what it put in: exactly where nothing was denoised, to first order where it was."""

from __future__ import annotations

import numpy as np
import pytest

from client.examples.split import Ragged, ragged
from client.privacy.preference_release import bounded_likes, bounded_preferences, exact_part
from client.recommender.evidence import Popular
from client.recommender.fused_model import fused_with
from client.recommender.histories import Histories
from client.recommender.item_preferences import own_preferences
from client.recommender.left_out import Validation
from client.recommender.own_model import OwnFit
from client.recommender.platform_model import weigh_evidence
from client.recommender.released_by_others import released_by_others
from shared.preferences.packing import unpacked
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.sum_kind import SumKind
from shared.preferences.summed_preferences import ChosenItems, PreferenceQuestion, PreferenceSum, combined_preferences
from tests.client.recommender.test_item_preferences import histories_of

ITEMS = 40
HASHES = np.arange(ITEMS, dtype=np.uint64) + 7
PLACE = np.arange(ITEMS)


class _Choice:
    found: ChosenItems | None = None

    def chosen(self) -> ChosenItems | None:
        return self.found

    def choose(self, chosen: ChosenItems) -> None:
        self.found = chosen


def released(*platforms: Ragged, noise: float = 0.0, seed: int = 0, choice: _Choice | None = None) -> SharedPreferences:
    random = np.random.default_rng(seed)

    def ask(question: PreferenceQuestion) -> PreferenceSum:
        total = np.zeros(question.size)
        for liked in platforms:
            if question.of is SumKind.LIKES:
                total += bounded_likes(liked, PLACE, items=ITEMS).vector()
            else:
                assert question.direction is not None
                total += bounded_preferences(liked, PLACE, direction=question.direction, items=ITEMS).vector()
        return PreferenceSum(vector=total + random.normal(0, noise, len(total)), noise=noise, users=sum(map(len, platforms)))

    return combined_preferences(HASHES, most=ITEMS, ask=ask, store=choice or _Choice())


def matrix_of(shared: SharedPreferences) -> np.ndarray:
    factors = shared.factors.astype(np.float64)
    return factors.T @ factors


def told(shared: SharedPreferences, liked: np.ndarray) -> float:
    """What a user's items say of the last; without the axes, which are shares of one number."""
    factors = shared.factors[1:].astype(np.float64)
    return float((factors.T @ factors)[liked[:-1], liked[-1]].sum())


@pytest.fixture(scope="module")
def mine() -> Ragged:
    return histories_of(60, seed=1).liked


@pytest.fixture(scope="module")
def theirs() -> Ragged:
    return histories_of(200, seed=2).liked


def test_a_platforms_part_is_its_sum(mine: Ragged) -> None:
    random = np.random.default_rng(0)
    direction, vectors = random.random(ITEMS - 1).astype(np.float32), random.normal(size=(ITEMS - 1, 5))
    place = np.where(PLACE < 3, PLACE, PLACE - 1)
    place[3] = -1
    matrix = unpacked(bounded_preferences(mine, place, direction=direction, items=ITEMS - 1).vector(), ITEMS - 1)
    part = exact_part(mine, place, direction=direction, vectors=vectors)
    np.testing.assert_allclose(part.moved, matrix @ vectors, atol=1e-9)
    np.testing.assert_allclose(part.diagonal, np.diag(matrix), atol=1e-9)


def test_without_noise_what_remains_is_the_others_sum(mine: Ragged, theirs: Ragged) -> None:
    shared = released(mine, theirs)
    rest = released_by_others(shared, mine, HASHES)
    axis = shared.factors[0] / np.linalg.norm(shared.factors[0])
    beside = unpacked(bounded_preferences(theirs, PLACE, direction=axis, items=ITEMS).vector(), ITEMS)
    kept = 1 - float(shared.factors[0] @ shared.factors[0]) / shared.users
    along = float(rest.factors[0] @ rest.factors[0])
    np.testing.assert_allclose(matrix_of(rest), kept * beside + along * np.outer(axis, axis), atol=2e-3)
    np.testing.assert_allclose(rest.popularity, np.diag(matrix_of(rest)), atol=0.05 * rest.popularity.max())
    assert 0 < along < float(shared.factors[0] @ shared.factors[0])


def test_with_noise_a_users_part_is_what_the_release_would_lack_without_them(theirs: Ragged) -> None:
    """Against the release that was never made; the projection of the user's part alone would leave more than half of it."""
    noise, left, before = 0.4, [], []
    for user in range(20):
        rest = ragged([theirs[other] for other in range(len(theirs)) if other != user])
        choice = _Choice()
        shared = released(theirs, noise=noise, choice=choice)
        without = told(released(rest, noise=noise, choice=choice), theirs[user])
        before.append(told(shared, theirs[user]) - without)
        left.append(told(released_by_others(shared, ragged([theirs[user]]), HASHES), theirs[user]) - without)
    assert np.mean(before) > 0
    assert abs(np.mean(left)) < 0.25 * np.mean(before)


def test_a_release_of_nothing_but_own_rows_is_no_news(mine: Ragged) -> None:
    histories = Histories(liked=mine, items=ITEMS, ordered=True)
    none_known = Ragged(values=mine.values, offsets=mine.offsets)
    validation = Validation(histories, none_known, seed=0)
    evidence = [Popular(histories)]
    own = OwnFit(
        validation=validation, evidence=evidence, model=weigh_evidence(validation, own_preferences(validation), evidence)
    )
    gains = {}
    for seed in range(4):
        shared = released(mine, noise=0.4, seed=seed)
        for name, one in (("as it is", shared), ("without", released_by_others(shared, mine, HASHES))):
            fused = fused_with(own, factors=one.factors_on(HASHES), popularity=one.popularity_on(HASHES))
            gains.setdefault(name, []).append(fused.gain - own.model.gain)
    assert np.mean(gains["without"]) < 0.3 * np.mean(gains["as it is"])


def test_a_platform_without_the_items_takes_nothing_out(theirs: Ragged, mine: Ragged) -> None:
    shared = released(theirs)
    assert released_by_others(shared, mine, HASHES + np.uint64(1000)) is shared
