"""Item-item ridge: the regression that it is, in every form it is computed in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge

from client.recommender import item_ridge
from client.recommender.item_ridge import ItemRidge, leading_rows

FORMS = ["formed", "by rows"]


def liked(rows: int, items: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, items)) < 0.25).astype(float)


def sparse(matrix: np.ndarray) -> csr_matrix:
    return csr_matrix(matrix.astype(np.float32))


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by rows":
        monkeypatch.setattr(item_ridge, "MOST_ITEMS", 0)
    return str(request.param)


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


def test_released_factors_are_rows_like_any_others(form: str) -> None:
    """What counts is A'A: the factors of other users' rows stand for these users."""
    own, others, histories = liked(10, 8), liked(40, 8, seed=5), liked(3, 8, seed=6)
    values, vectors = np.linalg.eigh(others.T @ others)
    factors = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    pooled = ItemRidge(sparse(np.vstack([own, others])), ridge=1.0).scores(sparse(histories))
    near(ItemRidge(sparse(np.vstack([own, factors])), ridge=1.0).scores(sparse(histories)), pooled)


def test_many_rows_and_items_go_through_their_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    rows = sparse(random.random((60, 6)) @ random.random((6, 50)))
    expected = ItemRidge(rows, ridge=0.5).scores(rows[:4])
    monkeypatch.setattr(item_ridge, "MOST_ROWS", 40)
    monkeypatch.setattr(item_ridge, "MOST_ITEMS", 0)
    np.testing.assert_allclose(ItemRidge(rows, ridge=0.5).scores(rows[:4]), expected, atol=1e-3)
    directions = leading_rows(rows, 6)
    np.testing.assert_allclose(directions.T @ directions, (rows.T @ rows).toarray(), rtol=1e-3)


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
