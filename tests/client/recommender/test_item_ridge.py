"""Item-item ridge: the regression that it is, in every form it is computed in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from client.recommender import item_neighbours, item_ridge
from client.recommender.item_ridge import ItemRidge, gram_of, spectrum_of

FORMS = ["formed", "by rows"]


def liked(rows: int, items: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, items)) < 0.25).astype(float)


def sparse(matrix: np.ndarray) -> csr_matrix:
    return csr_matrix(matrix.astype(np.float32))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by rows":
        monkeypatch.setattr(item_ridge, "MOST_ITEMS", 0)
        monkeypatch.setattr(item_ridge, "MOST_ROWS", 10**6)
    return str(request.param)


def of_one(ridge: ItemRidge, history: np.ndarray) -> None:
    """What is said of one person is what is said of many, item by item of their history."""
    scores, adds = ridge.for_one(sparse(history))
    np.testing.assert_array_equal(scores, ridge.scores(sparse(history))[0])
    there = np.flatnonzero(history[0])
    expected = history[0, there, None] * np.array([ridge.weights_from(item) for item in there])
    near(adds(np.arange(ridge.items)), expected)
    near(adds(np.array([5, 1, 2])), expected[:, [5, 1, 2]])


def near(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("rows", [4, 30])
def test_every_item_is_a_ridge_regression_on_the_others(form: str, rows: int) -> None:
    users, histories = liked(rows, 12), liked(5, 12, seed=1) * np.random.default_rng(1).random((5, 12))
    scores = ItemRidge(sparse(users), ridge=2.0).scores(sparse(histories))
    for item in range(12):
        others = np.arange(12) != item
        fitted = Ridge(alpha=2.0, fit_intercept=False, solver="cholesky").fit(users[:, others], users[:, item])
        near(scores[:, item], histories[:, others] @ fitted.coef_)


def test_without_a_user_is_a_fit_without_them(form: str) -> None:
    users, histories = liked(9, 14, seed=2), liked(20, 14, seed=3)
    which = np.random.default_rng(4).integers(0, 9, 20)
    found = ItemRidge(sparse(users), ridge=2.0).scores_without(sparse(users), sparse(histories), which)
    for place, user in enumerate(which):
        without = ItemRidge(sparse(np.delete(users, user, axis=0)), ridge=2.0)
        near(found[place], without.scores(sparse(histories[place : place + 1]))[0])


def test_what_items_add_sums_up_to_the_score(form: str) -> None:
    found = ItemRidge(sparse(liked(20, 7)), ridge=2.0)
    history = np.array([[0.5, 0, 0, 1.0, 0, 0, 0.25]])
    near(found.scores(sparse(history))[0], 0.5 * found.weights_from(0) + found.weights_from(3) + 0.25 * found.weights_from(6))
    assert found.weights_from(3)[3] == pytest.approx(0.0, abs=1e-6)
    of_one(found, history)


def test_released_factors_are_rows_like_any_others(form: str) -> None:
    """What counts is A'A: the factors of other users' rows represent these users."""
    own, others, histories = liked(10, 8), liked(40, 8, seed=5), liked(3, 8, seed=6)
    values, vectors = np.linalg.eigh(others.T @ others)
    factors = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    pooled = ItemRidge(sparse(np.vstack([own, others])), ridge=1.0).scores(sparse(histories))
    near(ItemRidge(sparse(np.vstack([own, factors])), ridge=1.0).scores(sparse(histories)), pooled)


def test_popular_items_are_exact_and_a_rare_one_is_a_regression_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_ridge, "MOST_ITEMS", 6)
    monkeypatch.setattr(item_ridge, "MOST_ROWS", 40)
    monkeypatch.setattr(item_neighbours, "NEIGHBOURS", 3)
    users = np.random.default_rng(7).random((80, 9)) < np.array([0.5] * 6 + [0.1] * 3)[[0, 6, 1, 2, 7, 3, 4, 5, 8]]
    popular, rare = np.array([0, 2, 3, 5, 6, 7]), np.array([1, 4, 8])
    found = ItemRidge(sparse(users), ridge=2.0)
    exact = ItemRidge(sparse(users[:, popular]), ridge=2.0)
    weights = np.array([found.weights_from(item) for item in range(9)])
    of_one(found, np.array([[0, 0.5, 1, 0, 2, 0, 0, 1, 0]]))
    of_one(found, np.array([[0, 1, 0, 0, 0.5, 0, 0, 0, 0]]))
    near(weights[np.ix_(popular, popular)], np.array([exact.weights_from(item) for item in range(6)]))
    assert (weights[np.ix_(rare, rare)] == 0).all()
    precision = np.linalg.inv(users[:, popular].T @ users[:, popular].astype(float) + 2.0 * np.eye(6))
    for item in rare:
        together = users[:, popular].T @ users[:, item].astype(float)
        close = np.argsort(-together / np.sqrt(users[:, popular].sum(0)), kind="stable")[:3]
        chosen = users[:, popular[close]]
        fitted = Ridge(alpha=2.0, fit_intercept=False, solver="cholesky").fit(chosen, users[:, item])
        expected = np.zeros(6)
        expected[close] = fitted.coef_
        near(weights[popular, item], expected)
        left = users[:, item].sum() + 2.0 - fitted.coef_ @ together[close]
        near(weights[item, popular], expected / left / np.diag(precision))


def test_with_all_neighbours_one_rare_item_is_as_exact_as_the_popular_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    users = liked(80, 7, seed=8)
    users[:, 3] *= np.random.default_rng(0).random(80) < 0.3
    expected = ItemRidge(sparse(users), ridge=2.0)
    monkeypatch.setattr(item_ridge, "MOST_ITEMS", 6)
    monkeypatch.setattr(item_ridge, "MOST_ROWS", 40)
    found = ItemRidge(sparse(users), ridge=2.0)
    near(found.scores(sparse(liked(9, 7, seed=9)))[:, 3], expected.scores(sparse(liked(9, 7, seed=9)))[:, 3])


def test_rare_items_of_rows_apart_are_predicted_without_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """The item that a left-out user alone likes must not be predicted by that user's own row."""
    monkeypatch.setattr(item_ridge, "MOST_ITEMS", 6)
    monkeypatch.setattr(item_ridge, "MOST_ROWS", 40)
    users = liked(60, 8, seed=10)
    users[:, 6:] = 0
    users[5, 6] = users[9, 7] = users[20, 7] = 1
    histories, apart = sparse(users[[5, 9]] * (np.arange(8) < 6)), np.array([5, 9])
    found = ItemRidge(sparse(users), ridge=2.0, spectrum=spectrum_of(sparse(users), apart=apart))
    scores = found.scores_without(sparse(users[apart]), histories, np.arange(2))
    whole = ItemRidge(sparse(np.delete(users, apart, axis=0)), ridge=2.0)
    assert (scores[:, 6] == 0).all() and (found.scores(histories)[:, 6] != 0).any()
    assert np.abs(scores[:, 7]).max() > 0 and whole.scores(histories)[1, 7] == pytest.approx(scores[1, 7], abs=0.02)
    for place, user in enumerate(apart):
        without = ItemRidge(sparse(np.delete(users, user, axis=0)), ridge=2.0)
        near(scores[place, :6], without.scores(histories[place])[0, :6])


def test_what_is_summed_by_blocks_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_ridge, "_AT_ONCE", 3)
    rows = np.vstack([liked(40, 10, seed=3), np.random.default_rng(0).random((4, 10))])
    items = np.array([0, 2, 3, 5, 7, 8, 9])
    np.testing.assert_allclose(gram_of(sparse(rows), items), rows[:, items].T @ rows[:, items], rtol=1e-5)


@pytest.mark.parametrize("rows", [np.zeros((0, 4)), np.zeros((3, 4)), np.ones((1, 4))])
def test_next_to_nothing_is_finite(form: str, rows: np.ndarray) -> None:
    found = ItemRidge(sparse(rows), ridge=1.0)
    scores = found.scores(sparse(np.eye(4)))
    assert np.isfinite(scores).all() and np.isfinite(found.weights_from(0)).all()
    if not rows.any():
        assert (scores == 0).all()


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_no_ridge_is_refused(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge"):
        ItemRidge(sparse(np.eye(3)), ridge=ridge)
