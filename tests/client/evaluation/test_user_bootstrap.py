"""Intervals of sums, quotients and of what lists cover."""

from __future__ import annotations

import numpy as np
import pytest

from client.evaluation import user_bootstrap
from client.evaluation.user_bootstrap import estimate_of, list_estimate, quotient, resampled_counts, sum_estimates


def test_a_quotients_interval_is_that_of_its_standard_error() -> None:
    random = np.random.default_rng(0)
    count = random.integers(1, 6, 3000).astype(float)
    total = count * random.normal(2.0, 1.0, 3000)
    (found,) = sum_estimates(np.stack([total, count], axis=1), lambda sums: sums[:, :1] / sums[:, 1:], seed=1)
    ratio = total.sum() / count.sum()
    error = np.std(total - ratio * count) / count.mean() / np.sqrt(3000)  # the delta method
    assert found.value == pytest.approx(ratio)
    assert found.low == pytest.approx(ratio - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(ratio + 1.96 * error, abs=0.2 * error)


def test_what_all_lists_cover_lies_in_its_interval() -> None:
    lists = np.random.default_rng(0).integers(0, 500, (200, 3)).astype(np.int32)

    def share(items: np.ndarray) -> float:
        return len(np.unique(items)) / 500

    found = list_estimate(lists, share, seed=0)
    assert found.low < found.value == share(lists) < found.high


def test_an_interval_has_the_middle_95_percent_of_what_is_defined() -> None:
    drawn = np.random.default_rng(0).permutation(np.append(np.arange(1001.0), [np.nan] * 7))
    found = estimate_of(3.0, drawn)
    assert (found.value, found.low, found.high) == (3.0, 25.0, 975.0)
    nothing = estimate_of(np.nan, np.full(5, np.nan))
    assert nothing.as_dict() == {"value": None, "low": None, "high": None}
    assert estimate_of(0.12345678, np.array([1 / 3])).as_dict() == {"value": 0.123457, "low": 0.333333, "high": 0.333333}


@pytest.mark.parametrize("at_once", [1, 7, 40, 41, 1 << 22])
def test_every_resample_draws_as_many_users_as_there_are(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(user_bootstrap, "_AT_ONCE", 8 * at_once)
    parts = list(resampled_counts(8, seed=3, resamples=41))
    assert [len(part) for part in parts] == [at_once] * (41 // at_once) + [41 % at_once] * bool(41 % at_once)
    counts = np.concatenate(parts)
    assert counts.shape == (41, 8) and counts.dtype == np.float64 and (counts.sum(1) == 8).all()
    random = np.random.default_rng(3)
    for row in counts:
        np.testing.assert_array_equal(row, np.bincount(random.integers(0, 8, 8), minlength=8))


def test_a_figure_of_all_lists_is_in_the_middle_of_its_resamples() -> None:
    """A resample covers less than all: its figures are moved up, and never beyond everything."""
    lists = np.random.default_rng(1).integers(0, 90, (60, 3)).astype(np.int32)

    def share(items: np.ndarray) -> float:
        return len(np.unique(items)) / 90

    random = np.random.default_rng(5)
    drawn = np.array([share(lists[random.integers(0, 60, 60)]) for _ in range(200)])
    assert drawn.mean() < share(lists) - 0.1
    moved = np.clip(drawn - drawn.mean() + share(lists), 0.0, 1.0)
    found = list_estimate(lists, share, seed=5)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(moved, [2.5, 97.5])))
    everything = list_estimate(np.arange(40, dtype=np.int32)[:, None], lambda items: len(np.unique(items)) / 40, seed=0)
    assert everything.value == everything.high == 1.0 and everything.low > 0.8


def test_a_quotient_over_nothing_is_not_defined() -> None:
    found = quotient(np.array([1.0, 0.0, 3.0, 0.0]), np.array([2.0, 0.0, 0.5, -0.0]))
    np.testing.assert_array_equal(found, [0.5, np.nan, 6.0, np.nan])
