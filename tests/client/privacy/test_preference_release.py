"""One user's part in a platform's preferences: its norm is 1, whoever they are, and it is what the formula says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.examples.split import ragged
from client.privacy.preference_release import bounded_preferences
from shared.preferences.packing import triangle_size, unpacked

PLACE = np.array([2, -1, 0, 1, 3, -1])
users = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=6)


def sum_of(rows: list[list[int]], only: list[int] | None = None) -> np.ndarray:
    liked = ragged([np.asarray(row, np.int32) for row in rows])
    found = bounded_preferences(liked, PLACE, items=4, only=None if only is None else np.asarray(only, np.int64))
    assert found.bound == 1.0 and found.dimension == triangle_size(4)
    return found.vector()


@given(users)
def test_it_is_the_formula(rows: list[list[int]]) -> None:
    expected = np.zeros((4, 4))
    for row in rows:
        x = np.zeros(4)
        x[[PLACE[item] for item in row if PLACE[item] >= 0]] = 1.0
        expected += np.outer(x, x) / max(x @ x, 1.0)
    np.testing.assert_allclose(unpacked(sum_of(rows), 4), expected, atol=1e-9)


@given(users, st.data())
def test_a_user_moves_it_by_one_at_most(rows: list[list[int]], data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(rows) - 1))
    left = [number for number in range(len(rows)) if number != gone]
    moved = np.linalg.norm(sum_of(rows) - sum_of(rows, only=left))
    shared = any(PLACE[item] >= 0 for item in rows[gone])
    assert moved <= 1.0 and moved == pytest.approx(float(shared))
