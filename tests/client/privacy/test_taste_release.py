"""One user's part in a taste map: its norm is 1 at most, whoever they are, and it is what the formula says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.examples.split import ragged
from client.privacy.taste_release import bounded_tastes, taste_of
from shared.preferences.packing import unpacked
from shared.preferences.sum_kind import triangle_size

_RAW = np.random.default_rng(1).normal(size=(6, 4))
F = _RAW / np.linalg.norm(_RAW, axis=1, keepdims=True)
F[5] = 0.0  # an item without a text of its own
users = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=6)


def sum_of(rows: list[list[int]], only: list[int] | None = None) -> np.ndarray:
    liked = ragged([np.asarray(row, np.int32) for row in rows])
    found = bounded_tastes(liked, F, only=None if only is None else np.asarray(only, np.int64))
    assert found.bound == 1.0 and found.dimension == triangle_size(4)
    return found.vector()


def formula(row: list[int]) -> np.ndarray:
    """Pair by pair."""
    pairs = sum((np.outer(F[i], F[j]) for i in set(row) for j in set(row) if i != j), start=np.zeros((4, 4)))
    length = np.linalg.norm(pairs)
    return pairs / length if length > 1e-9 else np.zeros((4, 4))


@given(users)
def test_it_is_the_formula(rows: list[list[int]]) -> None:
    expected = sum((formula(row) for row in rows), start=np.zeros((4, 4)))
    np.testing.assert_allclose(unpacked(sum_of(rows), 4), expected, atol=1e-6)


@given(users, st.data())
def test_a_user_moves_it_by_one_at_most(rows: list[list[int]], data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(rows) - 1))
    left = [number for number in range(len(rows)) if number != gone]
    moved = np.linalg.norm(sum_of(rows) - sum_of(rows, only=left))
    assert moved <= 1.0 and moved == pytest.approx(float(np.linalg.norm(formula(rows[gone]))), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_what_is_no_number_is_no_taste(bad: float) -> None:
    found = taste_of(np.array([[bad, 0.0], [0.5, 0.5]]))
    assert np.isfinite(found).all() and np.linalg.norm(found) <= 1.0


def test_one_item_is_no_taste() -> None:
    assert not taste_of(F[:1]).any() and not taste_of(F[:0]).any()
