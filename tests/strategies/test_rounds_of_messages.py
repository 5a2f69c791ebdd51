"""What every strategy asks, and what it says of a round: kinds and lifetimes of messages, bounds, counts and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, MessageType

from shared.base.settings import build
from shared.protocol.flower_records import request_from
from shared.protocol.messages import Evaluate, Label, Personalise, Personalised, Train
from strategies.base import AdapterStrategy, Member, NoUpdate, adapter_from, lifetime_of, record_of
from strategies.composition import named
from tests.strategies.contract import RUN, SHAPES, Nodes, drawn, identify, metrics, reply, update


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    identify(monkeypatch)


def strategy(name: str = "fedavg", *, members: Any = range(1, 9), users: int = 3, **over: Any) -> AdapterStrategy:
    settings = build({"strategy": name, "reply_timeout": 33.0, **over}, where="test")
    roll = None if members is None else [Member(node=node, platform=f"p{node}", users=users) for node in members]
    return named(name)(settings=settings, run=RUN, members=roll)


def begun(name: str = "fedavg", **over: Any) -> AdapterStrategy:
    made = strategy(name, **over)
    made.configure_train(1, record_of(drawn(0)), ConfigRecord(), Nodes())
    return made


def zeros() -> Any:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def test_a_message_lives_longer_than_its_answer_is_waited_for() -> None:
    assert lifetime_of(33.0) == 93.0
    made, adapter = strategy(members=(4, 5)), record_of(drawn(0))
    for messages, kind, group in (
        (made.configure_train(7, adapter, ConfigRecord(), Nodes()), MessageType.TRAIN, "7"),
        (made.configure_evaluate(7, adapter, ConfigRecord(), Nodes()), MessageType.EVALUATE, "7"),
        (made.configure_personalise(7, adapter, Nodes()), MessageType.TRAIN, "7"),
    ):
        assert [message.metadata.dst_node_id for message in messages] == [4, 5]
        for message in messages:
            where = message.metadata
            assert (where.message_type, where.ttl, where.group_id) == (kind, 93.0, group)
        assert messages[0].content is messages[1].content


def test_each_question_holds_the_round_and_the_whole_adapter() -> None:
    made, adapter = strategy(members=(4,)), drawn(0)
    (trained,) = made.configure_train(7, record_of(adapter), ConfigRecord(), Nodes())
    (personal,) = made.configure_personalise(8, record_of(adapter), Nodes())
    asked = [request_from(one.content) for one in (trained, personal)]
    for label in Label:
        (message,) = made.configure_evaluate(7, record_of(adapter), ConfigRecord({"label": str(label)}), Nodes())
        asked.append(request_from(message.content))
        assert isinstance(asked[-1], Evaluate) and asked[-1].label is label
    (message,) = made.configure_evaluate(7, record_of(adapter), ConfigRecord(), Nodes())
    plain = request_from(message.content)
    assert isinstance(plain, Evaluate) and plain.label is Label.FEDERATED
    assert made.round == 7 and isinstance(asked[0], Train) and isinstance(asked[1], Personalise)
    assert [one.round for one in asked if not isinstance(one, Evaluate)] == [7, 8]
    for one in asked:
        assert isinstance(one, Train | Personalise | Evaluate) and one.adapter.keys() == adapter.keys()


@pytest.mark.parametrize(
    ("name", "came", "faulty", "found"),
    [
        ("fedavg", 0, 0, "round 1 brought no usable update"),
        ("median", 0, 1, "round 1 brought no usable update, of 3 that are needed"),
        ("median", 1, 1, "round 1 brought 1 usable update, of 3 that are needed"),
        ("median", 2, 1, "round 1 brought 2 usable updates, of 3 that are needed"),
    ],
)
def test_a_round_that_brought_too_little_says_how_little_and_names_five(name: str, came: int, faulty: int, found: str) -> None:
    made = begun(name, server={"faulty": faulty})
    answers: list[Any] = [reply(update(node, zeros(), users=3), node) for node in range(1, came + 1)]
    answers += [reply(Error(code=node, reason="x"), node) for node in range(came + 1, 9)]
    with pytest.raises(NoUpdate) as caught:
        made.aggregate_train(1, answers)
    assert caught.value.found == found
    assert caught.value.where == ", ".join(f"p{node}: error {node}" for node in range(came + 1, came + 6))


def test_a_node_without_a_name_is_called_by_its_number() -> None:
    made = begun(members=None)
    with pytest.raises(NoUpdate) as caught:
        made.aggregate_train(1, [reply(Error(code=5, reason="x"), 77)])
    assert caught.value.where == "77: error 5"


def test_a_round_counts_platforms_users_and_what_was_left_out() -> None:
    made = begun(members=None)
    answers = [reply(update(node, zeros(), users=users), node) for node, users in ((1, 1), (2, 5))]
    _, counted = made.aggregate_train(1, [*answers, reply(update(3, zeros(), users=0), 3)])
    assert dict(counted) == {"platforms": 2, "users": 6, "dropped": 1}
    (drop,) = made.report.drops
    assert drop.reason == "declares 0 users" and drop.platform == ""
    roll = begun()
    roll.aggregate_train(1, [reply(update(1, zeros(), users=3), 1), reply(update(2, zeros(), users=4), 2)])
    (drop,) = roll.report.drops
    assert drop.reason == "declares 4 users, joined with 3" and drop.platform == "p2"


def test_an_update_moves_no_parameter_further_than_training_can() -> None:
    made = begun()
    made.largest = 0.5
    at_most, beyond = zeros(), zeros()
    at_most["head.lora_B"][0, 0], beyond["head.lora_B"][0, 0] = -0.5, -0.5000001
    made.aggregate_train(1, [reply(update(1, at_most, users=3), 1), reply(update(2, beyond, users=3), 2)])
    assert [receipt.platform for receipt in made.report.updates] == ["p1"]
    assert [drop.reason for drop in made.report.drops] == ["head.lora_B moved further than the settings' training can move it"]


def test_a_step_out_of_float32s_range_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun()
    for wrong in (np.inf, np.nan):
        stepped = {**zeros(), "head.lora_B": np.array([[1.0, wrong]], np.float32)}
        monkeypatch.setattr(made, "step", lambda adapter, change, stepped=stepped: stepped)
        with pytest.raises(NoUpdate, match="round 1 would drive the adapter out of the range of float32"):
            made.aggregate_train(1, [reply(update(1, zeros(), users=3), 1)])


def test_evaluations_are_counted_and_what_stays_there_is_told() -> None:
    made = begun(members=None)
    found = made.aggregate_evaluate(1, [reply(metrics(1, users=3, ndcg=0.5), 1), reply(metrics(2, users=1, ndcg=0.1), 2)])
    assert found is not None and found["platforms"] == 2 and found["users"] == 4
    assert found["ndcg@10"] == pytest.approx(0.4)
    told = Personalised(run=RUN, platform="p1", round=1, users=3, epsilon=1.0, ledger="", seconds=0.1, chosen=True)
    made.aggregate_personalise(1, [reply(told, 1), reply(Error(code=2, reason="x"), 2)])
    assert made.report.personalised == [told] and [drop.node for drop in made.report.drops] == [2]


def test_an_adapter_is_carried_as_it_is() -> None:
    adapter = {name: array[:, ::-1] for name, array in drawn(3).items()}  # not contiguous
    back = adapter_from(record_of(adapter))
    assert list(back) == list(adapter)
    for name, array in adapter.items():
        np.testing.assert_array_equal(back[name], array)
