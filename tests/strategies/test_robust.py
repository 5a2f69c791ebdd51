"""The bounds that the robust combiners state, with platforms that send whatever hurts most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.protocol.messages import Update
from strategies.averaging import WeightedMean
from strategies.robust import Krum, Median, Robust, Trimmed
from tests.strategies.contract import SHAPES, Arrays, StrategyContract, drawn, identify, reply, update

few = settings(max_examples=25, deadline=None)
ATTACKS = {
    "x1000": lambda honest, random: {name: 1000 * value for name, value in honest[0].items()},
    "x-1000": lambda honest, random: {name: -1000 * value for name, value in honest[0].items()},
    "noise": lambda honest, random: {
        name: (50 * random.normal(size=v.shape)).astype(np.float32) for name, v in honest[0].items()
    },
    "huge": lambda honest, random: {name: np.full_like(value, 3e38) for name, value in honest[0].items()},
    "zero": lambda honest, random: {name: np.zeros_like(value) for name, value in honest[0].items()},
    "a little": lambda honest, random: {
        name: np.mean([part[name] for part in honest], 0) + 1.5 * np.std([part[name] for part in honest], 0) for name in honest[0]
    },
    "one coordinate": lambda honest, random: {
        name: value + 1e6 * (np.arange(value.size).reshape(value.shape) == 0) for name, value in honest[0].items()
    },
}


def attacked(kind: type[Robust], attack: str, *, honest: int, faulty: int, seed: int) -> tuple[list[Arrays], Arrays]:
    random = np.random.default_rng(seed)
    fine = [drawn(1000 * seed + at) for at in range(honest)]
    combiner = kind(SHAPES, faulty=faulty)
    sent = [*fine, *(ATTACKS[attack](fine, random) for _ in range(faulty))]
    for at in random.permutation(len(sent)):
        combiner.add(
            {name: np.asarray(value, np.float32) for name, value in sent[at].items()}, weight=int(random.integers(1, 10**6))
        )
    return fine, combiner.change()


def flat(update: Arrays) -> np.ndarray[Any, Any]:
    return np.concatenate([update[name].astype(np.float64).ravel() for name in SHAPES])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", [Median, Trimmed])
@few
@given(faulty=st.integers(1, 3), more=st.integers(0, 4), seed=st.integers(0, 99))
def test_every_coordinate_stays_among_the_honest_ones(kind: type[Robust], attack: str, faulty: int, more: int, seed: int) -> None:
    honest = kind.least(faulty) - faulty + more
    fine, change = attacked(kind, attack, honest=honest, faulty=faulty, seed=seed)
    for name in SHAPES:
        values = np.stack([part[name] for part in fine])
        assert (change[name] >= values.min(0) - 1e-6).all() and (change[name] <= values.max(0) + 1e-6).all()


@pytest.mark.parametrize("attack", ATTACKS)
@few
@given(faulty=st.integers(1, 3), more=st.integers(0, 4), seed=st.integers(0, 99))
def test_krum_stays_within_its_distance_of_the_honest_ones(attack: str, faulty: int, more: int, seed: int) -> None:
    count = Krum.least(faulty) + more
    fine, change = attacked(Krum, attack, honest=count - faulty, faulty=faulty, seed=seed)
    rows = np.stack([flat(part) for part in fine])
    diameter = max(np.linalg.norm(one - other) for one in rows for other in rows)
    bound = diameter * np.sqrt((count - faulty - 2) / (count - 2 * faulty - 1))
    # The distance from a convex hull is at most the one from any point of it; the nearest by Frank and Wolfe's steps.
    point, at = flat(change), rows.mean(0)
    for step in range(400):
        target = rows[np.argmin(rows @ (at - point))]
        at = at + (target - at) * 2 / (step + 2)
    assert np.linalg.norm(point - at) <= bound * (1 + 1e-3)


@pytest.mark.parametrize("attack", ["x1000", "huge", "one coordinate"])
def test_krum_drops_what_is_far_away_altogether(attack: str) -> None:
    fine, change = attacked(Krum, attack, honest=6, faulty=1, seed=3)
    np.testing.assert_allclose(flat(change), np.mean([flat(part) for part in fine], 0), atol=1e-6)


def test_a_mean_has_no_such_bound() -> None:
    """Why these are there: one update of nine moves the mean as far as it likes."""
    mean = WeightedMean(SHAPES)
    for seed in range(8):
        mean.add(drawn(seed), weight=1)
    mean.add({name: 1000 * value for name, value in drawn(8).items()}, weight=1)
    assert np.linalg.norm(flat(mean.change())) > 100 * np.linalg.norm(flat(drawn(8))) / 2


def test_without_faults_trimming_nothing_is_the_mean() -> None:
    parts = [drawn(seed) for seed in range(4)]
    for kind in (Trimmed, Krum):
        combiner = kind(SHAPES, faulty=0)
        for part in parts:
            combiner.add(part, weight=7)
        np.testing.assert_allclose(flat(combiner.change()), np.mean([flat(part) for part in parts], 0), atol=1e-6)


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle() -> None:
    combiner = Median({"x": (1, 1)}, faulty=0)
    for value in (4.0, 1.0, 3.0, 100.0):
        combiner.add({"x": np.array([[value]], np.float32)}, weight=1)
    assert combiner.change()["x"].item() == 3.5


def test_trimming_is_by_coordinate() -> None:
    combiner = Trimmed({"x": (1, 2)}, faulty=1)
    for row in ((0.0, 9.0), (1.0, 2.0), (2.0, 4.0), (99.0, -99.0)):
        combiner.add({"x": np.array([row], np.float32)}, weight=1)
    assert combiner.change()["x"].tolist() == [[1.5, 3.0]]


def test_krum_scores_by_the_nearest_others_alone() -> None:
    combiner = Krum({"x": (1, 1)}, faulty=1)
    for value in (0.0, 0.1, 0.2, 0.3, 9.0):
        combiner.add({"x": np.array([[value]], np.float32)}, weight=1)
    assert combiner.change()["x"].item() == pytest.approx(0.15)


def by_hand(updates: list[Arrays], faulty: int) -> Arrays:
    """Multi-Krum as Blanchard et al. write it, one number after the other; of equal scores the smaller norm is chosen first."""

    def squared(one: Arrays, other: Arrays) -> float:
        return sum((float(a) - float(b)) ** 2 for name in one for a, b in zip(one[name].flat, other[name].flat, strict=True))

    ranked = []
    for at, one in enumerate(updates):
        distances = sorted(squared(one, other) for place, other in enumerate(updates) if place != at)
        norm = squared(one, {name: np.zeros_like(value) for name, value in one.items()})
        ranked.append((sum(distances[: len(updates) - faulty - 2]), norm, at))
    chosen = [updates[at] for _, _, at in sorted(ranked)[: len(updates) - faulty]]
    return {name: np.mean([one[name].astype(np.float64) for one in chosen], axis=0) for name in updates[0]}


@given(faulty=st.integers(0, 3), more=st.integers(0, 3), data=st.data())
@settings(max_examples=200, deadline=None)
def test_krum_chooses_as_its_paper_says(faulty: int, more: int, data: st.DataObject) -> None:
    """Small whole numbers: they form clusters of every shape, and their distances are exact."""
    count = Krum.least(faulty) + more
    numbers = st.tuples(*[st.integers(-9, 9)] * 3)
    rows = data.draw(st.lists(numbers, min_size=count, max_size=count))
    updates = [{"x": np.array([[a]], np.float32), "y": np.array([[b, c]], np.float32)} for a, b, c in rows]
    combiner = Krum({"x": (1, 1), "y": (1, 2)}, faulty=faulty)
    for one in updates:
        combiner.add(one, weight=1)
    expected, change = by_hand(updates, faulty), combiner.change()
    for name in expected:
        np.testing.assert_allclose(change[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_of_equal_scores_krum_drops_the_greater_norm_over_all_tensors(order: tuple[int, ...]) -> None:
    """Five in a row: both ends have the same score. The farther from zero goes, whoever came first."""
    updates = [(float(at), 10.0 - 2 * at) for at in range(1, 6)]
    combiner = Krum({"x": (1, 1), "y": (1, 1)}, faulty=1)
    for at in order:
        combiner.add({name: np.array([[value]], np.float32) for name, value in zip("xy", updates[at], strict=True)}, weight=1)
    change = combiner.change()
    assert (change["x"].item(), change["y"].item()) == (3.5, 3.0)  # (1, 8) is dropped: of both tensors together the greatest


@pytest.mark.parametrize("name", ["median", "trimmed", "krum", "ffa+median", "rolora+trimmed", "fedsa+krum"])
@pytest.mark.parametrize("how", ["x1000", "nan"])
def test_one_platform_of_six_does_not_steer_the_model(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    identify(monkeypatch)
    contract = type("Contract", (StrategyContract,), {"name": name})()
    adapter = drawn(0)
    strategy = contract.strategy(dict.fromkeys(range(1, 7), 1), adapter)
    sent = {node: contract.trained(strategy, drawn(node)) for node in range(1, 7)}
    factor = 1000 if how == "x1000" else np.nan
    bad: Update = update(6, {key: value * factor for key, value in sent[6].items()})
    answers = [*(reply(update(node, sent[node]), node) for node in range(1, 6)), reply(bad, 6)]
    arrays, _ = strategy.aggregate_train(1, answers)
    assert [drop.node for drop in strategy.report.drops] == ([6] if how == "nan" else [])
    for key in sent[1]:
        honest = np.stack([sent[node][key] for node in range(1, 6)])
        change = arrays[key].numpy() - adapter[key]
        assert (change >= honest.min(0) - 1e-5).all() and (change <= honest.max(0) + 1e-5).all()
