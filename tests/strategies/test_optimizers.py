"""Server optimizers against the algorithms as they are printed, one number at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shared.base.errors import InputError
from shared.base.settings import ServerSettings
from strategies.optimizers import FedAdam, FedAvgM, FedYogi, ServerOptimizer

SETTINGS = ServerSettings(momentum=0.8, second_moment=0.95, adaptivity=0.01, learning_rate=0.05)
KINDS: list[type[ServerOptimizer]] = [FedAvgM, FedAdam, FedYogi]


def printed(kind: type[ServerOptimizer], changes: list[float], s: ServerSettings) -> list[float]:
    """Reddi et al. 2021, Algorithm 2 (and Hsu et al. 2019 for momentum), written out for one parameter."""
    x, m, v, path = 0.0, 0.0, s.adaptivity**2, []
    for delta in changes:
        if kind is FedAvgM:
            m = s.momentum * m + delta
            x += s.learning_rate * m
        else:
            m = s.momentum * m + (1 - s.momentum) * delta
            if kind is FedYogi:
                v = v - (1 - s.second_moment) * delta**2 * math.copysign(1, v - delta**2) if v != delta**2 else v
            else:
                v = s.second_moment * v + (1 - s.second_moment) * delta**2
            x += s.learning_rate * m / (math.sqrt(v) + s.adaptivity)
        path.append(x)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_printed_algorithm(kind: type[ServerOptimizer]) -> None:
    changes = np.random.default_rng(0).normal(0, 0.05, (12, 2, 3))
    optimizer, at = kind(SETTINGS), {"x": np.zeros((2, 3), np.float32)}
    for number, change in enumerate(changes):
        at = optimizer.step(at, {"x": change})
        wanted = [[printed(kind, list(changes[:, row, column]), SETTINGS)[number] for column in range(3)] for row in range(2)]
        np.testing.assert_allclose(at["x"], wanted, rtol=1e-5, atol=1e-7)


def test_momentum_agrees_with_flowers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's FedAvgM as the second opinion: the same mean, the same velocity."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvgM as Theirs

    from tests.strategies.contract import Nodes, identify

    identify(monkeypatch)
    monkeypatch.setattr("flwr.serverapp.strategy.fedavg.sample_nodes", lambda *args: ([1, 2], [1, 2]))
    theirs = Theirs(server_learning_rate=0.5, server_momentum=0.9)
    ours = FedAvgM(ServerSettings(learning_rate=0.5, momentum=0.9))
    random = np.random.default_rng(1)
    at: dict[str, Any] = {"x": random.normal(size=(2, 3)).astype(np.float32)}
    flower = ArrayRecord({"x": Array(at["x"])})
    for server_round in range(1, 5):
        change = random.normal(size=(2, 3)).astype(np.float32)
        list(theirs.configure_train(server_round, flower, ConfigRecord(), Nodes(1, 2)))
        replies = []
        for node in (1, 2):
            content = RecordDict(
                {"arrays": ArrayRecord({"x": Array(flower["x"].numpy() + change)}), "metrics": MetricRecord({"num-examples": 1})}
            )
            replies.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
        record, _ = theirs.aggregate_train(server_round, replies)
        assert record is not None
        flower = record
        at = ours.step(at, {"x": change.astype(np.float64)})
        np.testing.assert_allclose(at["x"], flower["x"].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_rests_keeps_value_and_moments(kind: type[ServerOptimizer]) -> None:
    """In a round of `rolora` half of the tensors do not move: they must not be carried on by an old velocity."""
    optimizer, at = kind(SETTINGS), {"x": np.zeros((1, 1), np.float32), "y": np.zeros((1, 1), np.float32)}
    at = optimizer.step(at, {"x": np.ones((1, 1)), "y": np.ones((1, 1))})
    before, state = at["y"].copy(), {key: value.copy() for key, value in optimizer.state().items() if key.endswith(":y")}
    at = optimizer.step(at, {"x": np.ones((1, 1))})
    np.testing.assert_array_equal(at["y"], before)
    assert state and all((optimizer.state()[key] == value).all() for key, value in state.items())


@pytest.mark.parametrize("kind", [FedAdam, FedYogi])
def test_a_loud_round_cannot_jump(kind: type[ServerOptimizer]) -> None:
    optimizer, at = kind(SETTINGS), {"x": np.zeros((1, 1), np.float32)}
    at = optimizer.step(at, {"x": np.full((1, 1), 1e6)})
    # m / sqrt(v) is at most (1 - beta 1) / sqrt(1 - beta 2) in the first step.
    assert 0 < at["x"].item() <= SETTINGS.learning_rate * 0.2 / math.sqrt(0.05) * 1.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["name", "moment", "shape", "type", "value"])
def test_a_state_of_something_else_is_refused(kind: type[ServerOptimizer], how: str) -> None:
    optimizer, at = kind(SETTINGS), {"x": np.zeros((2, 3), np.float32)}
    optimizer.step(at, {"x": np.ones((2, 3))})
    state: dict[str, Any] = dict(optimizer.state())
    key = next(iter(state))
    value = state.pop(key)
    moment = key.partition(":")[0]
    state |= {
        "name": {f"{moment}:y": value},
        "moment": {"third:x": value},
        "shape": {key: value.T.copy()},
        "type": {key: value.astype(np.float32)},
        "value": {key: value * np.nan},
    }[how]
    with pytest.raises(InputError, match="does not fit"):
        kind(SETTINGS).restore(state, at)


def test_rates_have_their_own_defaults() -> None:
    change = {"x": np.full((1, 1), 0.5)}
    zero = {"x": np.zeros((1, 1), np.float32)}
    assert FedAvgM(ServerSettings()).step(zero, change)["x"].item() == pytest.approx(0.05)
    steady = FedAvgM(ServerSettings())
    assert [steady.move("x", change["x"]).item() for _ in range(200)][-1] == pytest.approx(0.5)
    assert 0 < FedAdam(ServerSettings()).step(zero, change)["x"].item() < 0.02


def test_a_change_that_is_just_as_large_as_it_was_expected_moves_no_moment() -> None:
    """v = change squared, exactly, is where Yogi's sign is 0."""
    optimizer = FedYogi(SETTINGS)
    squared = np.array([0.25, 0.25, 0.25])
    second = optimizer.second(np.array([0.25, 0.5, 0.125]), squared)
    np.testing.assert_array_equal(second, [0.25, 0.5 - (1 - 0.95) * 0.25, 0.125 + (1 - 0.95) * 0.25])
