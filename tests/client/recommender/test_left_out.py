"""Left-out points: which they are, and that a choice among many makes only those that are chosen."""

from __future__ import annotations

import numpy as np
import pytest

from client.examples.split import ragged
from client.recommender import left_out as module
from client.recommender.histories import Histories
from client.recommender.left_out import LAST, left_out


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
