"""One user's part in a platform's preferences: its norm is 1, whoever they are, and it is what the formula says."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.examples.split import ragged
from client.privacy import preference_release
from client.privacy.preference_release import bounded_likes, bounded_preferences
from shared.preferences.packing import unpacked
from shared.preferences.sum_kind import triangle_size

PLACE = np.array([2, -1, 0, 1, 3, -1])
users = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=6)


numbers = st.floats(0, 1, width=32)
directions = st.lists(numbers, min_size=4, max_size=4).filter(lambda values: sum(values) > 0.01)


def sum_of(rows: list[list[int]], direction: list[float], only: list[int] | None = None) -> np.ndarray:
    liked = ragged([np.asarray(row, np.int32) for row in rows])
    chosen = None if only is None else np.asarray(only, np.int64)
    found = bounded_preferences(liked, PLACE, direction=np.asarray(direction, np.float32), items=4, only=chosen)
    assert found.bound == 1.0 and found.dimension == triangle_size(4)
    return found.vector()


def beside(row: list[int], direction: list[float]) -> np.ndarray:
    x = np.zeros(4)
    x[[PLACE[item] for item in row if PLACE[item] >= 0]] = 1.0
    y, q = x / max(np.linalg.norm(x), 1.0), np.asarray(direction) / max(np.linalg.norm(direction), 1e-300)
    return y - (y @ q) * q


@given(users, directions)
def test_it_is_the_formula(rows: list[list[int]], direction: list[float]) -> None:
    expected = np.zeros((4, 4))
    for row in rows:
        v = beside(row, direction)
        expected += np.outer(v, v) / max(v @ v, 0.05)
    np.testing.assert_allclose(unpacked(sum_of(rows, direction), 4), expected, atol=1e-6)


def test_without_a_direction_nothing_is_taken_off() -> None:
    found = unpacked(sum_of([[2, 3], [0]], [0.0] * 4), 4)
    expected = np.zeros((4, 4))
    expected[:2, :2] = 0.5
    expected[2, 2] = 1.0
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(users, directions, st.data())
def test_a_user_moves_it_by_one_at_most(rows: list[list[int]], direction: list[float], data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(rows) - 1))
    left = [number for number in range(len(rows)) if number != gone]
    moved = np.linalg.norm(sum_of(rows, direction) - sum_of(rows, direction, only=left))
    v = beside(rows[gone], direction)
    assert moved <= 1.0 and moved == pytest.approx(min(1.0, v @ v / 0.05), abs=1e-5)


@given(users, st.data())
def test_nor_along_their_own_direction(rows: list[list[int]], data: st.DataObject) -> None:
    """A coordinator that takes off all that a user likes, but for rounding, learns nothing that is larger than the bound."""
    gone = data.draw(st.integers(0, len(rows) - 1))
    own = beside(rows[gone], [0.0] * 4)
    left = [number for number in range(len(rows)) if number != gone]
    moved = np.linalg.norm(sum_of(rows, own.tolist()) - sum_of(rows, own.tolist(), only=left))
    assert moved <= 1e-3


@given(users, directions, st.integers(1, 12))
def test_some_users_at_a_time_give_the_same_sum(rows: list[list[int]], direction: list[float], at_once: int) -> None:
    liked = ragged([np.asarray(row, np.int32) for row in rows])
    expected, likes = sum_of(rows, direction), bounded_likes(liked, PLACE, items=4).vector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference_release, "_AT_ONCE", at_once)
        np.testing.assert_allclose(sum_of(rows, direction), expected, atol=1e-9)
        np.testing.assert_allclose(bounded_likes(liked, PLACE, items=4).vector(), likes, atol=1e-12)


def test_memory_does_not_grow_with_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference_release, "_AT_ONCE", 1000)
    rows = [np.arange(4, dtype=np.int32)] * 500
    peaks = []
    for times in (1, 20):
        liked = ragged(rows * times)
        tracemalloc.start()
        bounded_preferences(liked, PLACE, direction=np.ones(4, np.float32), items=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What is left to grow: a number of each user and of their likes before them.
    assert peaks[1] < peaks[0] + 20 * 500 * 40
