"""A release on a catalogue, read by what items have in common; and what of it a platform did not put in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from client.examples.split import Ragged, ragged
from client.privacy.preference_release import bounded_likes, bounded_preferences, length_along
from client.recommender.evidence import Popular
from client.recommender.fused_model import fused_with
from client.recommender.histories import Histories
from client.recommender.item_preferences import own_preferences
from client.recommender.item_ridge import ItemRidge
from client.recommender.left_out import Validation
from client.recommender.own_model import OwnFit
from client.recommender.platform_model import weigh_evidence
from client.recommender.released_preferences import released_by_others, released_on
from shared.preferences.denoising import public_ridge
from shared.preferences.packing import unpacked
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.sum_kind import SumKind
from shared.preferences.summed_preferences import ChosenItems, PreferenceQuestion, PreferenceSum, combined_preferences
from tests.client.recommender.test_item_preferences import histories_of

ITEMS = 40
HASHES = np.arange(ITEMS, dtype=np.uint64) + 7
PLACE = np.arange(ITEMS)
WORDS = scipy.sparse.csr_matrix((ITEMS, 3), dtype=np.float32)


class _Choice:
    found: ChosenItems | None = None

    def chosen(self) -> ChosenItems | None:
        return self.found

    def choose(self, chosen: ChosenItems) -> None:
        self.found = chosen


def released(*platforms: Ragged, noise: float = 0.0, seed: int = 0, choice: _Choice | None = None) -> SharedPreferences:
    def ask(question: PreferenceQuestion) -> PreferenceSum:
        total = np.zeros(question.size)
        for liked in platforms:
            if question.of is SumKind.LIKES:
                total += bounded_likes(liked, PLACE, items=ITEMS).vector()
            else:
                assert question.direction is not None
                total += bounded_preferences(liked, PLACE, direction=question.direction, items=ITEMS).vector()
        random = np.random.default_rng([seed, question.of is SumKind.LIKES])
        return PreferenceSum(vector=total + random.normal(0, noise, len(total)), noise=noise, users=sum(map(len, platforms)))

    return combined_preferences(HASHES, most=ITEMS, ask=ask, store=choice or _Choice())


def matrix_of(shared: SharedPreferences) -> np.ndarray:
    factors = shared.factors.astype(np.float64)
    return factors.T @ factors


def others(shared: SharedPreferences, mine: Ragged) -> tuple[np.ndarray, np.ndarray]:
    factors, popularity = released_by_others(shared, HASHES, words=WORDS, liked=mine)
    assert factors is not None and popularity is not None
    return factors.astype(np.float64), popularity


@pytest.fixture(scope="module")
def mine() -> Ragged:
    return histories_of(60, seed=1).liked


@pytest.fixture(scope="module")
def theirs() -> Ragged:
    return histories_of(200, seed=2).liked


def test_what_lies_along_the_axis_is_what_the_sum_leaves_out(mine: Ragged) -> None:
    direction = np.random.default_rng(0).random(ITEMS - 1).astype(np.float32)
    place = np.where(PLACE < 3, PLACE, PLACE - 1)
    place[3] = -1
    axis = direction.astype(np.float64) / np.linalg.norm(direction)
    total = 0.0
    for user in range(len(mine)):
        unit = np.zeros(ITEMS - 1)
        unit[[place[item] for item in mine[user] if place[item] >= 0]] = 1.0
        total += float(unit @ axis) ** 2 / max(float(unit @ unit), 1.0)
    assert length_along(mine, place, direction=direction, items=ITEMS - 1) == pytest.approx(total)


def test_without_noise_what_remains_is_the_others_sum(mine: Ragged, theirs: Ragged) -> None:
    shared = released(mine, theirs)
    factors, popularity = others(shared, mine)
    length = float(np.linalg.norm(shared.factors[0]))
    axis, kept = shared.factors[0] / length, 1 - length**2 / shared.users
    beside = unpacked(bounded_preferences(theirs, PLACE, direction=axis, items=ITEMS).vector(), ITEMS)
    along = float(factors[0] @ factors[0])
    np.testing.assert_allclose(factors.T @ factors, kept * beside + along * np.outer(axis, axis), atol=2e-3)
    np.testing.assert_allclose(popularity, np.diag(factors.T @ factors), atol=0.05 * popularity.max())
    assert 0 < along < length**2


def test_with_noise_what_remains_is_the_release_that_the_others_alone_would_have_made(mine: Ragged, theirs: Ragged) -> None:
    """The same noise, and the same axis: exactly, since nothing was denoised before."""
    choice = _Choice()
    both, alone = (released(*platforms, noise=0.4, choice=choice) for platforms in ((mine, theirs), (theirs,)))
    users = {"users": both.users, "noise": both.noise, "factors": both.factors}
    factors, _ = others(both, mine)
    there = released_on(replace(alone, **users), HASHES, words=WORDS)
    np.testing.assert_allclose(factors[1:].T @ factors[1:], there.factors[1:].T @ there.factors[1:], atol=1e-3)


def test_words_that_tell_which_items_are_liked_together_bring_back_what_the_noise_drowned() -> None:
    """Users of eight tastes, each of five items that share a word, and noise as large as the sum."""
    random = np.random.default_rng(3)
    liked = [5 * random.integers(8) + random.permutation(5)[:4] for _ in range(300)]
    people = ragged([row.astype(np.int32) for row in liked])
    exact = released(people).factors[1:].astype(np.float64)
    words = scipy.sparse.csr_matrix(np.kron(np.eye(8), np.ones((5, 1))).astype(np.float32))
    errors: dict[str, list[float]] = {"told": [], "nothing": [], "as published": []}
    for seed in range(5):
        shared = released(people, noise=6.0, seed=seed)
        read = {"told": released_on(shared, HASHES, words=words), "nothing": released_on(shared, HASHES, words=WORDS)}
        for name, found in (read | {"as published": released_on(shared, HASHES)}).items():
            beside = found.factors[1:].astype(np.float64)
            errors[name].append(float(np.linalg.norm(beside.T @ beside - exact.T @ exact)))
    told, nothing, published = (np.mean(errors[name]) for name in ("told", "nothing", "as published"))
    assert told < 0.8 * min(nothing, published)


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
        whole = released_on(shared, HASHES, words=WORDS)
        for name, (factors, popularity) in {
            "as it is": (whole.factors, whole.popularity),
            "without": others(shared, mine),
        }.items():
            fused = fused_with(own, factors=factors, popularity=popularity)
            gains.setdefault(name, []).append(fused.gain - own.model.gain)
    assert np.mean(gains["without"]) < 0.3 * np.mean(gains["as it is"])


def test_a_platform_without_the_items_takes_nothing_out(theirs: Ragged, mine: Ragged) -> None:
    factors, popularity = released_by_others(released(theirs), HASHES + np.uint64(1000), words=WORDS, liked=mine)
    assert factors is not None and popularity is not None and not factors.any() and np.isnan(popularity).all()


def test_items_are_found_by_their_hash_whatever_their_order(theirs: Ragged, mine: Ragged) -> None:
    """A catalogue with some of the items, one of them twice, and one that nobody else has."""
    catalogue = np.array([11, 3, 30, 11, 99])
    hashes = np.append(HASHES[catalogue[:4]], np.uint64(5000))
    words = WORDS[np.minimum(catalogue, ITEMS - 1)]
    found = released_on(released(theirs, noise=0.4), hashes, words=words)
    np.testing.assert_array_equal(found.factors[:, 0], found.factors[:, 3])
    assert not found.factors[:, 4].any() and found.factors[:, :4].any(0).all() and found.released.tolist() == [True] * 4 + [False]
    small = released_on(released(theirs, noise=0.4), HASHES[[3, 11, 30]], words=WORDS[[3, 11, 30]])
    np.testing.assert_allclose(
        small.factors.T @ small.factors, (found.factors.T @ found.factors)[np.ix_([1, 0, 2], [1, 0, 2])], atol=1e-4
    )


def test_a_release_of_an_older_version_is_read_by_its_factors_and_never_fused_where_it_holds_own_rows(mine: Ragged) -> None:
    older = replace(released(mine, noise=0.1), noised=None)
    assert released_by_others(older, HASHES, words=WORDS, liked=mine) == (None, None)
    np.testing.assert_array_equal(released_on(older, HASHES, words=WORDS).factors, older.factors_on(HASHES))


@pytest.mark.parametrize("noise", [0.0, 3.0, 30.0])
def test_factors_read_anew_need_less_of_a_ridge_than_published_ones_but_one_at_least(theirs: Ragged, noise: float) -> None:
    """Their noise is damped already. The regression is that of the factors as they are read."""
    shared = released(theirs, noise=noise)
    published, older, anew = (
        released_on(shared, HASHES),
        released_on(replace(shared, noised=None), HASHES, words=WORDS),
        released_on(shared, HASHES, words=WORDS),
    )
    assert published.ridge.ridge == older.ridge.ridge == public_ridge(ITEMS, shared.noise) >= anew.ridge.ridge >= 1.0
    large = public_ridge(ITEMS, 1e3), released_on(replace(shared, noise=1e3), HASHES, words=WORDS).ridge.ridge
    assert 0.0 < large[1] < large[0]
    assert anew.ridge.ridge == pytest.approx(max(1.0, published.ridge.ridge * large[1] / large[0]))
    for found in (published, anew):
        expected = ItemRidge(scipy.sparse.csr_matrix(found.factors), ridge=found.ridge.ridge)
        history = scipy.sparse.csr_matrix(np.eye(ITEMS, dtype=np.float32)[:5])
        np.testing.assert_allclose(found.ridge.scores(history), expected.scores(history), atol=1e-6)
