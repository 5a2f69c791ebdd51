"""Released preferences: what a release may not be, where its items are in a catalogue, and what is made of noised sums."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from shared.base.errors import InputError, ProtocolError
from shared.preferences import packing
from shared.preferences.denoising import MOST_FACTORS, preference_factors
from shared.preferences.packing import packed, unpacked
from shared.preferences.popularity_axis import popularity_axis
from shared.preferences.shared_preferences import FILE, MOST_ITEMS, SharedPreferences, load_preferences, save_preferences
from shared.preferences.summed_preferences import ChosenItems, PreferenceQuestion, PreferenceSum, combined_preferences


def preferences(items: int = 3, rank: int = 2, **over: Any) -> SharedPreferences:
    values: dict[str, Any] = {
        "items": np.arange(items, dtype=np.uint64) * 10,
        "factors": np.arange(rank * items, dtype=np.float32).reshape(rank, items) + 1,
        "popularity": np.arange(items, dtype=np.float32) - 1,
        "noise": 0.5,
        "users": 7,
        **over,
    }
    return SharedPreferences(**values)


def test_it_may_be_as_large_as_is_said_and_no_larger() -> None:
    large = np.broadcast_to(np.float32(0), (MOST_FACTORS, MOST_ITEMS))
    assert preferences(MOST_ITEMS, factors=large).factors.shape == large.shape
    assert preferences(0, factors=np.zeros((0, 0), np.float32)).users == 7
    for items, factors in (
        (MOST_ITEMS + 1, np.zeros((1, MOST_ITEMS + 1), np.float32)),
        (3, np.zeros((MOST_FACTORS + 1, 3), np.float32)),
        (3, np.zeros((2, 4), np.float32)),
        (3, np.zeros(3, np.float32)),
    ):
        with pytest.raises(ProtocolError, match="preferences of"):
            preferences(items, factors=factors)
    with pytest.raises(ProtocolError, match="preferences of"):
        preferences(popularity=np.zeros(2, np.float32))


@pytest.mark.parametrize("noise", [-1e-9, np.inf, np.nan])
def test_no_other_noise(noise: float) -> None:
    assert preferences(noise=0.0).noise == 0.0
    with pytest.raises(ProtocolError, match="not finite"):
        preferences(noise=noise)


@pytest.mark.parametrize("name", ["factors", "popularity"])
def test_one_number_that_is_none_is_too_many(name: str) -> None:
    values = getattr(preferences(), name).copy()
    values.flat[-1] = np.nan
    with pytest.raises(ProtocolError, match="not finite"):
        preferences(**{name: values})


def test_on_a_catalogue_an_item_has_its_own_numbers_and_another_none() -> None:
    """Hashes before, between and after those that are released."""
    made = preferences()
    catalogue = np.array([20, 5, 0, 2**64 - 1, 10, 20], np.uint64)
    assert made.factors_on(catalogue).tolist() == [[3, 0, 1, 0, 2, 3], [6, 0, 4, 0, 5, 6]]
    np.testing.assert_array_equal(made.popularity_on(catalogue), [1, np.nan, 0, np.nan, 0, 1])  # below 0 it is noise
    nothing = preferences(0, factors=np.zeros((2, 0), np.float32))
    assert nothing.factors_on(catalogue).tolist() == [[0] * 6] * 2 and np.isnan(nothing.popularity_on(catalogue)).all()
    assert made.factors_on(catalogue[:0]).shape == (2, 0) and made.popularity_on(catalogue[:0]).shape == (0,)


DAMAGE: dict[str, Any] = {
    "items of another type": {"items": np.arange(3, dtype=np.int64)},
    "factors of another type": {"factors": np.ones((2, 3))},
    "popularity of another type": {"popularity": np.ones(3)},
    "items out of order": {"items": np.array([10, 0, 20], np.uint64)},
    "a tensor of another size": {"popularity": np.ones(4, np.float32)},
}


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = preferences()
    save_preferences(tmp_path / FILE, made)
    found = load_preferences(tmp_path / FILE)
    for name in ("items", "factors", "popularity"):
        np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
    assert (found.noise, found.users) == (made.noise, made.users)


@pytest.mark.parametrize("damage", [*DAMAGE, "no facts", "cut short"])
def test_a_damaged_one_is_refused(tmp_path: Path, damage: str) -> None:
    made = preferences()
    tensors = {name: getattr(made, name) for name in ("items", "factors", "popularity")} | DAMAGE.get(damage, {})
    facts = {"noise": 0.5} if damage == "no facts" else {"noise": 0.5, "users": 7}
    save_file(tensors, tmp_path / FILE, metadata={"preferences": json.dumps(facts)})
    if damage == "cut short":
        (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        load_preferences(tmp_path / FILE)
    with pytest.raises(InputError, match="there are no"):
        load_preferences(tmp_path / "elsewhere")


SUM = np.arange(6, dtype=np.float32)
"""Of three items."""


def test_the_sum_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = preferences(noised=SUM, users=400)
    save_preferences(tmp_path / FILE, made)
    found = load_preferences(tmp_path / FILE)
    assert found.noised is not None
    np.testing.assert_array_equal(found.noised, SUM)
    assert found.axis.share == pytest.approx(14 / 400)
    np.testing.assert_allclose(found.axis.direction, np.array([1, 2, 3]) / np.sqrt(14), rtol=1e-6)


@pytest.mark.parametrize(
    "over",
    [
        {"noised": SUM[:-1]},
        {"noised": np.append(SUM[:-1], np.float32(np.nan))},
        {"noised": SUM, "users": 0},
        {"noised": SUM, "users": 15},  # nearly all of everybody would be popularity
        {"noised": SUM, "factors": np.zeros((0, 3), np.float32)},
        {"noised": SUM, "factors": np.zeros((2, 3), np.float32)},
        {"noised": SUM, "factors": np.array([[1, -1, 1]], np.float32)},
    ],
    ids=["short", "not finite", "of nobody", "too long an axis", "no axis", "no direction", "a negative direction"],
)
def test_a_sum_that_does_not_fit_is_refused(over: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        preferences(**{"users": 400, **over})


class Memory:
    """Where a run keeps what it chose."""

    def __init__(self) -> None:
        self.kept: ChosenItems | None = None

    def chosen(self) -> ChosenItems | None:
        return self.kept

    def choose(self, chosen: ChosenItems) -> None:
        self.kept = chosen


@pytest.mark.parametrize("single", [False, True], ids=["in float64", "in half the memory"])
def test_what_is_published_is_the_sums_without_their_noise_and_popularity_put_back(
    monkeypatch: pytest.MonkeyPatch, single: bool
) -> None:
    monkeypatch.setattr(packing, "_DOUBLE", 3 if single else 4)
    shared = np.array([3, 5, 9, 11, 20, 21], np.uint64)
    likes = np.array([50.0, 1.0, 80.0, -2.0, 50.0, 50.0])
    rows = np.random.default_rng(0).random((40, 4))
    together = packed(rows.T @ rows)
    asked: list[PreferenceQuestion] = []

    def ask(question: PreferenceQuestion) -> PreferenceSum:
        asked.append(question)
        return PreferenceSum(vector=likes if question.direction is None else together, noise=0.25, users=90)

    memory = Memory()
    found = combined_preferences(shared, most=4, ask=ask, store=memory)
    # Of equal counts the smaller hash.
    items, counts = np.array([3, 9, 20, 21], np.uint64), likes[[0, 2, 4, 5]]
    axis = popularity_axis(counts, noise=0.25, users=90)
    beside = preference_factors(unpacked(together, 4), noise=0.25)
    factors, popularity = axis.put_back(beside, np.diag(unpacked(together, 4)), users=90)
    np.testing.assert_array_equal(found.items, items)
    np.testing.assert_allclose(found.factors.T @ found.factors, factors.T @ factors, rtol=1e-4)
    np.testing.assert_allclose(found.popularity, popularity, rtol=1e-6)
    assert found.noise == pytest.approx(0.25 * (1 - axis.share)) and found.users == 90
    first, second = asked
    assert first.direction is None and first.items is shared and first.size == 6
    assert second.size == 10 and second.items.tolist() == items.tolist()
    np.testing.assert_array_equal(second.direction, axis.direction)  # type: ignore[arg-type]
    # A coordinator that comes back asks the second question alone, and the same.
    combined_preferences(shared, most=4, ask=ask, store=memory)
    assert len(asked) == 3 and np.array_equal(asked[2].items, items)
