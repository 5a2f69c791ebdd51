"""Segments, means and the interval of a comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from client.examples.split import Split, ragged
from client.recommender.model_comparison import bootstrap_interval, compare_models


@dataclass(frozen=True)
class Fixed:
    """The same scores for everybody."""

    values: np.ndarray

    def scores(self, users: np.ndarray) -> np.ndarray:
        return np.tile(self.values.astype(np.float32), (len(users), 1))


TRAIN = [[0], [0, 1, 2, 3], [], [0, 2]]
HELD = [1, 4, -1, 4]


def split() -> Split:
    rows = ragged([np.asarray(row, np.int32) for row in TRAIN])
    return Split(train=rows, held=np.asarray(HELD, np.int32), known=rows)


def test_segments_and_means() -> None:
    own, fused = Fixed(np.array([0, 1, 0, 0, 5.0])), Fixed(np.array([9, 5, 4, 3, 2.0]))
    found = compare_models({"own": own, "global": own, "fused": fused}, split(), seed=0).segments
    assert {name: segment.users for name, segment in found.items()} == {"all": 3, "few-events": 2, "rare-items": 3}
    # Own ranks 2, 1, 1; fused ranks 1, 1, 3.
    discounts = 1 / np.log2(np.array([2, 1, 1]) + 1), 1 / np.log2(np.array([1, 1, 3]) + 1)
    assert found["all"].quality["own"]["ndcg@10"] == pytest.approx(discounts[0].mean())
    assert found["few-events"].quality["fused"]["ndcg@10"] == pytest.approx(discounts[1][[0, 2]].mean())
    assert found["all"].quality["own"] == found["all"].quality["global"]
    gain = found["all"].gain
    assert gain is not None and gain.mean == pytest.approx((discounts[1] - discounts[0]).mean())
    assert gain.low <= gain.mean <= gain.high


def test_own_alone_has_no_gain_and_nobody_no_quality() -> None:
    own = Fixed(np.arange(5.0))
    assert compare_models({"own": own}, split(), seed=0).segments["all"].gain is None
    nobody = Split(train=split().train, held=np.full(4, -1, np.int32), known=split().known)
    found = compare_models({"own": own}, nobody, seed=0)
    assert found.as_dict()["all"] == {"users": 0, "fused_minus_own": None}


def test_the_same_model_twice_gains_nothing() -> None:
    own = Fixed(np.arange(5.0))
    gain = compare_models({"own": own, "fused": own}, split(), seed=0).segments["all"].gain
    assert gain is not None and (gain.mean, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_the_interval_is_that_of_the_mean() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, 5000)
    found, error = bootstrap_interval(differences, seed=0), differences.std() / np.sqrt(5000)
    assert found.mean == differences.mean()
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval(differences, seed=0) == found
