"""Left-out points: which they are, and that a choice among many makes only those that are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from client.examples.split import ragged
from client.recommender import left_out as module
from client.recommender.histories import Histories
from client.recommender.left_out import LAST, left_out, surely_more


def histories(users: int = 200, items: int = 500) -> Histories:
    random = np.random.default_rng(0)
    rows = [random.choice(items, random.integers(0, 30), replace=False).astype(np.int32) for _ in range(users)]
    return Histories(liked=ragged(rows), items=items, ordered=True)


@pytest.mark.parametrize("most", [50, 10**9])
def test_points_are_last_items_and_a_part_of_them_by_chance(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(module, "MOST", most)
    monkeypatch.setattr(module, "MOST_SCORES", 10**12)
    known = histories()
    every = [
        (user, place, int(known.liked[user][place]))
        for user in range(known.users)
        for place in range(max(1, len(known.liked[user]) - LAST), len(known.liked[user]))
    ]
    points = left_out(known, seed=4)
    found = list(zip(points.user.tolist(), points.place.tolist(), points.target.tolist(), strict=True))
    assert len(found) == min(most, len(every)) and set(found) <= set(every) and found == sorted(set(found))
    if most < len(every):
        assert found != list(zip(*(getattr(left_out(known, seed=5), name) for name in ("user", "place", "target")), strict=True))


def test_of_nobody_there_is_no_point() -> None:
    assert len(left_out(Histories(liked=ragged([]), items=3, ordered=True), seed=0)) == 0


def test_what_is_better_has_to_be_so_by_more_than_chance_explains() -> None:
    random = np.random.default_rng(0)
    users = random.integers(0, 30, 200)
    than = random.random(200)
    # Points of one user rise and fall together: each user is one draw.
    noise = random.normal(size=30)[users] + random.normal(size=200)
    noise -= noise.mean()
    error = np.sqrt(sum(noise[users == user].sum() ** 2 for user in range(30))) / 200
    assert error > 1.5 * noise.std() / np.sqrt(200)
    for times, expected in ((1.27, False), (1.29, True), (-1.29, False), (0.0, False), (5.0, True)):
        assert surely_more(than + noise + times * error, than, users) is expected
    shuffled = random.permutation(200)
    assert surely_more((than + noise + 1.29 * error)[shuffled], than[shuffled], users[shuffled])
    assert not surely_more(than, than, users)
    assert not surely_more(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


def test_what_is_no_better_passes_in_one_of_ten_cases() -> None:
    random, users = np.random.default_rng(1), np.repeat(np.arange(100), 3)
    passed = sum(surely_more(random.normal(size=100)[users] + random.normal(size=300), np.zeros(300), users) for _ in range(3000))
    assert passed == pytest.approx(300, abs=5 * np.sqrt(270))
