"""Intervals of sums, quotients and of what lists cover."""

from __future__ import annotations

import numpy as np
import pytest

from client.evaluation.user_bootstrap import list_estimate, sum_estimates


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
