"""What an attacker takes a canary to add is what it adds, and its scores are what formulas say of releases without noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from client.examples.split import Split, ragged
from client.privacy.preference_release import bounded_likes, bounded_preferences
from shared.base.errors import InputError
from shared.preferences.denoising import public_ridge
from shared.preferences.packing import packed
from shared.preferences.shared_preferences import SharedPreferences
from shared.preferences.sum_kind import SumKind
from simulations.attack.attack_report import AttackReport, View
from simulations.attack.canaries import Canaries, packed_canaries, with_canaries
from simulations.attack.gradient_canaries import LENGTH, GradientCanaries
from simulations.attack.linear_decoding import LinearView, decoded, likely_noise
from simulations.attack.preference_attack import _contributions, _exact, _model_scores, _Sum, _view

HASHES = np.array([30, 10, 99, 20, 50, 40, 77], np.uint64)
"""Of a platform's items; two of them are not asked for."""
ASKED = np.array([10, 20, 30, 40, 50], np.uint64)
CANARIES = Canaries(histories=np.array([[0, 1, 2], [3, 1, 5], [2, 6, 4], [4, 5, 0]]), inside=np.array([True, False, True, True]))
AXIS = np.array([0.8, 0.1, 0.2, 0.5, 0.2], np.float32)


@dataclass
class Rows:
    """As much of a platform's rows as an attack looks at."""

    split: Split
    item_hashes: np.ndarray = field(default_factory=lambda: HASHES)


def rows(liked: list[list[int]]) -> Any:
    split = Split(
        train=ragged([np.asarray(one, np.int32) for one in liked]),
        held=np.zeros(len(liked), np.int32),
        known=ragged([np.sort(np.asarray(one, np.int32)) for one in liked]),
    )
    return Rows(split)


@pytest.mark.parametrize("direction", [None, AXIS], ids=["likes", "pairs"])
def test_what_a_canary_is_taken_to_add_is_what_a_platform_adds_for_it(direction: np.ndarray | None) -> None:
    of = SumKind.LIKES if direction is None else SumKind.PREFERENCES
    asked = _Sum(of=of, items=ASKED, direction=direction, vector=np.zeros(0))
    platform = rows([[0, 1], [3, 4, 5]])
    added = []
    for history in CANARIES.histories:
        with_one = rows([[0, 1], [3, 4, 5], history.tolist()])
        added.append(_exact(with_one, asked) - _exact(platform, asked))
    unit = _contributions(asked, platform, CANARIES)
    expected = unit if direction is None else np.stack([packed(np.outer(one, one)) for one in unit])
    np.testing.assert_allclose(expected, added, atol=1e-6)
    # A release without noise: what each canary has of it, and how canaries meet in it, are products of what they add.
    released = np.sum([one for one, there in zip(added, CANARIES.inside, strict=True) if there], axis=0)
    view = _view(asked, released, unit, noise=0.25)
    np.testing.assert_allclose(view.along, np.stack(added) @ released, atol=1e-6)
    np.testing.assert_allclose(view.meeting, np.stack(added) @ np.stack(added).T, atol=1e-6)
    assert view.noise == 0.25
    assert ((decoded([replace(view, noise=0.01)]) > 0.5) == CANARIES.inside).all()


def test_the_noise_of_a_release_is_found_out_whatever_was_said() -> None:
    """Of 40 canaries in 300 numbers, and of 90 in 50, where no number is without a canary."""
    random = np.random.default_rng(3)
    for count, size in ((40, 300), (90, 50)):
        added = random.normal(size=(count, size)) / np.sqrt(size)
        coins = random.random(count) < 0.5
        for noise in (0.02, 0.5, 2.0):
            released = added[coins].sum(0) + noise * random.normal(size=size)
            for said in (noise, 8 * noise, noise / 4):
                view = LinearView(
                    along=added @ released, meeting=added @ added.T, noise=said, energy=float(released @ released), size=size
                )
                # Below what coins make of it, noise cannot be told where every number is of canaries.
                assert likely_noise(view) == pytest.approx(noise, rel=0.25, abs=0.0 if size > count else 0.4), (
                    count,
                    noise,
                    said,
                )


def test_the_sums_of_a_platform_are_of_all_its_users() -> None:
    place = np.array([2, 0, -1, 1, 4, 3, -1])
    platform = rows([[0, 1], [3, 4, 5], [2], []])
    likes = _exact(platform, _Sum(of=SumKind.LIKES, items=ASKED, direction=None, vector=np.zeros(0)))
    np.testing.assert_allclose(likes, bounded_likes(platform.split.train, place, items=5).vector())
    pairs = _exact(platform, _Sum(of=SumKind.PREFERENCES, items=ASKED, direction=AXIS, vector=np.zeros(0)))
    np.testing.assert_allclose(pairs, bounded_preferences(platform.split.train, place, direction=AXIS, items=5).vector())


def test_coins_are_decoded_as_by_the_normal_equations_of_all_releases() -> None:
    """b of mean 1/2 and variance 1/4, y_r = C_r' b + noise: the Gaussian posterior mean."""
    random = np.random.default_rng(0)
    parts = [random.normal(size=(6, 9)), random.normal(size=(6, 4))]
    noises = [0.3, 2.0]
    released = [random.normal(size=part.shape[1]) for part in parts]
    views = [
        LinearView(along=part @ y, meeting=part @ part.T, noise=s, energy=float(y @ y), size=len(y))
        for part, y, s in zip(parts, released, noises, strict=True)
    ]
    whole = np.hstack(parts)
    covariance = np.diag(np.repeat(np.square(noises), [9, 4]))
    gain = whole / 4 @ np.linalg.inv(whole.T @ whole / 4 + covariance)
    expected = 0.5 + gain @ (np.concatenate(released) - whole.T @ np.full(6, 0.5))
    np.testing.assert_allclose(decoded(views), expected, atol=1e-9)


def test_the_black_box_scores_each_item_of_a_canary_from_its_others() -> None:
    factors = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    published = SharedPreferences(items=ASKED, factors=factors, popularity=np.ones(5, np.float32), noise=0.4, users=9)
    found = _model_scores(published, rows([]), CANARIES)
    place = {0: 2, 1: 0, 3: 1, 4: 4, 5: 3}
    for history, score in zip(CANARIES.histories.tolist(), found, strict=True):
        at = [place[item] for item in history if item in place]
        total = 0.0
        for item in at:
            others = np.arange(5) != item
            fitted = Ridge(alpha=public_ridge(5, 0.4), fit_intercept=False, solver="cholesky")
            weights = fitted.fit(factors[:, others].astype(float), factors[:, item].astype(float)).coef_
            total += sum(weights[np.flatnonzero(others).tolist().index(other)] for other in at if other != item)
        assert score == pytest.approx(total, abs=1e-5)
    nothing = replace(published, factors=np.zeros((0, 5), np.float32))
    assert _model_scores(nothing, rows([]), CANARIES).tolist() == [0.0] * 4


def test_canaries_are_users_like_any_others() -> None:
    platform = rows([[0, 1], [3]])
    made = with_canaries(platform, CANARIES).split
    assert [made.train[user].tolist() for user in range(len(made.train))] == [[0, 1], [3], [0, 1, 2], [2, 6, 4], [4, 5, 0]]
    assert [made.known[user].tolist() for user in range(len(made.known))] == [[0, 1], [3], [0, 1, 2], [2, 4, 6], [0, 4, 5]]
    assert made.held.tolist() == [0, 0, -1, -1, -1] and made.train.values.dtype == np.int32


def test_as_many_canaries_as_fit_and_no_more_than_are_asked_for() -> None:
    """Of 9 items that two likes pair, each pair is a canary; of 6 that three like, blocks that share no pair are 4 at most."""
    random = np.random.default_rng(0)
    pairs = packed_canaries(np.arange(9), most=1000, liked=2, random=random)
    assert len(pairs) == 36 and {tuple(sorted(one)) for one in pairs.histories.tolist()} == {
        (a, b) for b in range(9) for a in range(b)
    }
    assert len(packed_canaries(np.arange(9), most=35, liked=2, random=random)) == 35
    assert 2 <= len(packed_canaries(np.arange(6), most=1000, liked=3, random=random)) <= 4
    assert packed_canaries(np.arange(4), most=1, liked=2, random=random).histories.shape == (1, 2)
    with pytest.raises(InputError, match="3 items are too few for canaries that like 2"):
        packed_canaries(np.arange(3), most=1, liked=2, random=random)


SHAPES: dict[str, tuple[int, ...]] = {"a": (2, 3), "b": (4,), "c": (1, 2)}


def test_gradient_canaries_are_orthonormal_and_as_long_as_is_said() -> None:
    made = GradientCanaries(count=5, seed=3)
    made.begin(SHAPES, clip=0.5)
    first = made.directions.copy()
    made.begin(SHAPES, clip=7.0)  # drawn once
    np.testing.assert_array_equal(made.directions, first)
    np.testing.assert_allclose(first @ first.T, np.eye(5), atol=1e-12)
    assert (made.names, made.sizes, made.clip) == (("a", "b", "c"), (6, 4, 2), 0.5)
    most = GradientCanaries(count=500, seed=3)
    most.begin(SHAPES, clip=0.5)
    assert most.count == 12 == len(most.directions) == len(most.inside)
    drawn = np.array([1, 0, 1])
    found = most.gradients(drawn, SHAPES)
    assert {name: tuple(part.shape) for name, part in found.items()} == {name: (3, *shape) for name, shape in SHAPES.items()}
    whole = np.concatenate([part.reshape(3, -1).numpy() for part in found.values()], axis=1)
    np.testing.assert_allclose(whole, most.directions[most.inside][drawn] * LENGTH * 0.5, atol=1e-5)


def test_gradient_canaries_are_scored_in_bounds_over_all_steps() -> None:
    made = GradientCanaries(count=6, seed=3)
    made.begin(SHAPES, clip=0.5)
    times = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]])  # canary, step
    made.steps = [0.5 * times[:, step] @ made.directions for step in range(3)]
    np.testing.assert_allclose(made.linear_scores(), times.sum(1), atol=1e-9)
    np.testing.assert_allclose(made.spread_scores(), [1, 1, 1, 0, 0, 1], atol=1e-9)


def test_a_claim_that_is_as_large_as_what_is_proven_stands() -> None:
    view = View(canaries=9, steinke=2.5, gaussian=1.0, area=0.5, low=0.0)
    report = AttackReport(release="updates", platform="shop", claim=2.5, delta=1e-5, views={"a": view, "b": replace(view)})
    assert view.bound == 2.5 and replace(view, gaussian=3.0).bound == 3.0
    assert not report.refuted
    assert replace(report, claim=2.4999).refuted
    assert replace(report, views={"a": view, "b": replace(view, gaussian=2.6)}).refuted
