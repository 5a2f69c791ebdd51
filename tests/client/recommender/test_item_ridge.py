"""Item-item ridge: the regression that it is, in every form it is computed in."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import Ridge

from client.recommender import item_ridge
from client.recommender.item_ridge import ItemRidge, leading_rows

FORMS = ["primal", "dual", "dual, sparse"]


def liked(rows: int, items: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((rows, items)) < 0.25).astype(float)


def ridge_of(rows: np.ndarray, form: str, monkeypatch: pytest.MonkeyPatch, *, ridge: float = 2.0) -> ItemRidge:
    if form == "primal":
        # As many rows as items: those that are missing say nothing.
        return ItemRidge(np.vstack([rows, np.zeros((rows.shape[1], rows.shape[1]))]), ridge=ridge)
    monkeypatch.setattr(item_ridge, "MOST_ITEMS", 0)
    return ItemRidge(scipy.sparse.csr_matrix(rows) if form == "dual, sparse" else rows, ridge=ridge)


@pytest.mark.parametrize("form", FORMS)
def test_every_item_is_a_ridge_regression_on_the_others(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = liked(30, 12)
    found = ridge_of(rows, form, monkeypatch)
    histories = np.random.default_rng(1).random((5, 12))
    scores = found.scores(histories)
    for item in range(12):
        others = np.arange(12) != item
        fitted = Ridge(alpha=2.0, fit_intercept=False, solver="cholesky").fit(rows[:, others], rows[:, item])
        np.testing.assert_allclose(scores[:, item], histories[:, others] @ fitted.coef_, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_user_is_a_fit_without_them(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, histories = liked(9, 14, seed=2), np.random.default_rng(3).random((9, 14))
    found = ridge_of(rows, form, monkeypatch).scores_without(rows, histories)
    for user in range(9):
        expected = ridge_of(np.delete(rows, user, axis=0), form, monkeypatch).scores(histories[user : user + 1])[0]
        np.testing.assert_allclose(found[user], expected, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_what_items_add_sums_up_to_the_score(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ridge_of(liked(20, 7), form, monkeypatch)
    history = np.array([[0.5, 0, 0, 1.0, 0, 0, 0.25]])
    parts = 0.5 * found.weights_from(0) + found.weights_from(3) + 0.25 * found.weights_from(6)
    np.testing.assert_allclose(found.scores(history)[0], parts, atol=1e-12)
    assert found.weights_from(3)[3] == pytest.approx(0.0, abs=1e-12)


def test_released_factors_are_rows_like_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is A'A: the factors of other users' rows stand for these users."""
    own, others = liked(10, 8), liked(40, 8, seed=5)
    values, vectors = np.linalg.eigh(others.T @ others)
    factors = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    histories = np.random.default_rng(6).random((3, 8))
    pooled = ItemRidge(np.vstack([own, others]), ridge=1.0).scores(histories)
    np.testing.assert_allclose(ItemRidge(np.vstack([own, factors]), ridge=1.0).scores(histories), pooled, atol=1e-9)


def test_many_rows_and_items_go_through_their_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(7)
    rows = random.random((60, 6)) @ random.random((6, 50))
    expected = ItemRidge(rows, ridge=0.5).scores(rows[:4])
    monkeypatch.setattr(item_ridge, "MOST_ROWS", 40)
    monkeypatch.setattr(item_ridge, "MOST_ITEMS", 0)
    np.testing.assert_allclose(ItemRidge(rows, ridge=0.5).scores(rows[:4]), expected, atol=1e-6)
    directions = leading_rows(scipy.sparse.csr_matrix(rows), 6)
    np.testing.assert_allclose(directions.T @ directions, rows.T @ rows, atol=1e-6)


@pytest.mark.parametrize("rows", [np.zeros((0, 4)), np.zeros((3, 4)), np.ones((1, 4))])
def test_next_to_nothing_is_finite(rows: np.ndarray) -> None:
    found = ItemRidge(rows, ridge=1.0)
    assert np.isfinite(found.scores(np.eye(4))).all() and np.isfinite(found.weights_from(0)).all()
    if not rows.any():
        assert (found.scores(np.eye(4)) == 0).all()


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_no_ridge_is_refused(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge"):
        ItemRidge(np.eye(3), ridge=ridge)
