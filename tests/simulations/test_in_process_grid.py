"""The in-process grid keeps the contract that Flower's own grid keeps; what is its own is tested apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from simulations.in_process_grid import InProcessGrid

NODES = {11: {"partition-id": 0, "num-partitions": 3}, 12: {"partition-id": 1, "num-partitions": 3}, 13: {"partition-id": 2}}
PATIENCE = 600.0
"""Seconds that an answer is waited for: Ray starts slowly on a busy machine."""


def make_app() -> ClientApp:
    """One app for every grid; made in a function, so that Ray carries it by value."""
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        record = message.content
        seen = int(context.state["seen"]["times"]) if "seen" in context.state else 0
        context.state["seen"] = ConfigRecord({"times": seen + 1})
        record["from"] = ConfigRecord({"partition": context.node_config["partition-id"], "seen": seen})
        return Message(record, reply_to=message)

    @app.query("fail")
    def fail(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("user 4711 broke it")
        return Message(RecordDict(), reply_to=message)

    return app


def asked(grid: Grid, action: str, nodes: list[int], content: RecordDict | None = None) -> list[Message]:
    return [Message(content or RecordDict(), node, f"query.{action}", ttl=86_400, group_id="1") for node in nodes]


def gather(grid: Grid, ids: list[str]) -> dict[str, Message]:
    found: dict[str, Message] = {}
    end = time.monotonic() + PATIENCE
    while len(found) < len(ids) and time.monotonic() < end:
        arrived = grid.pull_messages([id_ for id_ in ids if id_ not in found])
        found |= {message.metadata.reply_to_message_id: message for message in arrived}
        if not arrived:
            time.sleep(0.02)  # Ray's threads need the interpreter, too
    return found


def every_message_is_answered_by_its_node(grid: Grid) -> None:
    nodes = list(grid.get_node_ids())
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    messages = asked(grid, "echo", nodes, RecordDict({"a": ArrayRecord({"x": Array(array)})}))
    ids = list(grid.push_messages(messages))
    assert ids == [message.metadata.message_id for message in messages]  # in the order pushed, one each
    assert len(set(ids)) == len(nodes)
    found = gather(grid, ids)
    assert [found[id_].metadata.src_node_id for id_ in ids] == nodes
    for id_ in ids:
        np.testing.assert_array_equal(found[id_].content["a"]["x"].numpy(), array)
    assert sorted(int(found[id_].content["from"]["partition"]) for id_ in ids) == [0, 1, 2]
    assert {found[id_].metadata.group_id for id_ in ids} == {"1"}


def a_node_keeps_its_state_between_messages(grid: Grid) -> None:
    seen = []
    for _ in range(3):
        (reply,) = grid.send_and_receive(asked(grid, "echo", [next(iter(grid.get_node_ids()))]), timeout=PATIENCE)
        seen.append(int(reply.content["from"]["seen"]))
    assert seen == [seen[0], seen[0] + 1, seen[0] + 2]


def a_failing_app_is_an_error_reply_and_stops_nobody(grid: Grid) -> None:
    replies = list(grid.send_and_receive(asked(grid, "fail", list(grid.get_node_ids())), timeout=PATIENCE))
    errors = [reply for reply in replies if reply.has_error()]
    assert len(replies) == 3 and len(errors) == 1
    assert errors[0].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def an_unregistered_action_is_an_error_reply(grid: Grid) -> None:
    (reply,) = grid.send_and_receive(asked(grid, "nothing", [next(iter(grid.get_node_ids()))]), timeout=PATIENCE)
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def an_unknown_node_gets_no_id(grid: Grid) -> None:
    known = next(iter(grid.get_node_ids()))
    ids = [id_ for id_ in grid.push_messages(asked(grid, "echo", [999_999_999, known])) if id_]
    found = gather(grid, ids)
    assert [found[id_].metadata.src_node_id for id_ in ids] == [known]


CONTRACT: list[Callable[[Grid], None]] = [
    every_message_is_answered_by_its_node,
    a_node_keeps_its_state_between_messages,
    a_failing_app_is_an_error_reply_and_stops_nobody,
    an_unregistered_action_is_an_error_reply,
    an_unknown_node_gets_no_id,
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
def test_contract_in_process(clause: Callable[[Grid], None], workers: int) -> None:
    with InProcessGrid(app=make_app(), nodes=NODES, workers=workers) as grid:
        clause(grid)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_contract_of_flowers_own_simulation(patient_ray: None) -> None:
    """The same clauses on Ray, so that the contract is Flower's and not one that we made up."""
    from flwr.simulation import run_simulation

    kept: list[str] = []

    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < 3:
            time.sleep(0.05)
        for clause in CONTRACT:
            clause(grid)
            kept.append(clause.__name__)

    server = ServerApp()
    server.main()(main)
    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=server, client_app=make_app(), num_supernodes=3, backend_config=resources)
    assert kept == [clause.__name__ for clause in CONTRACT]


def test_the_error_reply_says_no_more_than_that_it_failed() -> None:
    grid = InProcessGrid(app=make_app(), nodes=NODES)
    replies = grid.send_and_receive(asked(grid, "fail", [12]))
    assert replies[0].error.reason == "failed"
    (failure,) = grid.failures
    assert (failure.node, failure.message_type, str(failure.error)) == (12, "query.fail", "user 4711 broke it")


def test_the_cause_of_a_failure_is_what_is_kept() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        raise RuntimeError("failed") from ValueError("the real one")

    grid = InProcessGrid(app=app, nodes=NODES)
    grid.send_and_receive([Message(RecordDict(), 11, "query")])
    assert isinstance(grid.failures[0].error, ValueError)


def test_an_answer_to_another_message_is_a_failure() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict(), 11, "query")

    grid = InProcessGrid(app=app, nodes=NODES)
    (reply,) = grid.send_and_receive([Message(RecordDict(), 11, "query")])
    assert reply.has_error()
    assert isinstance(grid.failures[0].error, TypeError)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_cannot_change_what_the_server_holds(workers: int) -> None:
    app = ClientApp()
    kept: list[RecordDict] = []

    @app.query()
    def query(message: Message, context: Context) -> Message:
        record = message.content
        array = record["a"]["x"]
        array.data = b"overwritten"
        record["c"]["list"].append(9)
        del record["a"]
        message.metadata.group_id = "changed"
        answer = RecordDict({"c": ConfigRecord({"list": [1]})})
        kept.append(answer)
        return Message(answer, reply_to=message)

    sent = RecordDict({"a": ArrayRecord({"x": Array(np.ones(3, np.float32))}), "c": ConfigRecord({"list": [1, 2]})})
    with InProcessGrid(app=app, nodes=NODES, workers=workers) as grid:
        messages = [Message(sent, node, "query", group_id="1") for node in NODES]
        replies = grid.send_and_receive(messages)
    assert not grid.failures  # the second and third node found everything in place
    np.testing.assert_array_equal(sent["a"]["x"].numpy(), np.ones(3))
    assert sent["c"]["list"] == [1, 2]
    assert {message.metadata.group_id for message in messages} == {"1"}
    for answer in kept:
        answer["c"]["list"].append(2)
    assert [reply.content["c"]["list"] for reply in replies] == [[1]] * 3


def test_a_message_is_executed_only_when_its_answer_is_asked_for() -> None:
    ran: list[int] = []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app=app, nodes=NODES)
    ids = grid.push_messages([Message(RecordDict(), node, "query") for node in NODES])
    assert ran == []
    assert len(grid.pull_messages(ids[1:])) == 1  # one answer a pull: they never pile up
    assert ran == [12]
    grid.pull_messages(ids[2:])
    assert ran == [12, 13]  # node 11's message was abandoned


def test_an_expired_message_is_never_executed() -> None:
    grid = InProcessGrid(app=make_app(), nodes=NODES)
    (id_,) = grid.push_messages([Message(RecordDict(), 11, "query.fail", ttl=0.001)])
    time.sleep(0.01)
    (reply,) = grid.pull_messages([id_])
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert reply.metadata.reply_to_message_id == id_
    (again,) = grid.pull_messages([id_])
    assert again.error.code == ErrorCode.MESSAGE_UNAVAILABLE


def test_threads_run_side_by_side_but_one_node_one_at_a_time() -> None:
    both = threading.Barrier(2, timeout=10)
    at_once: dict[int, int] = {}
    app = ClientApp()

    @app.query("meet")
    def meet(message: Message, context: Context) -> Message:
        both.wait()
        return Message(RecordDict(), reply_to=message)

    @app.query("alone")
    def alone(message: Message, context: Context) -> Message:
        at_once[context.node_id] = at_once.get(context.node_id, 0) + 1
        assert at_once[context.node_id] == 1
        time.sleep(0.01)
        at_once[context.node_id] -= 1
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(app=app, nodes=NODES, workers=2) as grid:
        assert len(grid.send_and_receive([Message(RecordDict(), node, "query.meet") for node in (11, 12)], timeout=20)) == 2
        grid.send_and_receive([Message(RecordDict(), node, "query.alone") for node in (11, 11, 11, 12)], timeout=20)
    assert grid.failures == []


def test_the_deadline_does_not_wait_for_a_slow_node_and_its_answer_can_still_be_had() -> None:
    release = threading.Event()
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        if context.node_id == 11:
            release.wait(10)
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(app=app, nodes=NODES, workers=2) as grid:
        messages = [Message(RecordDict(), node, "query") for node in NODES]
        replies = grid.send_and_receive(messages, timeout=0.3)
        assert sorted(reply.metadata.src_node_id for reply in replies) == [12, 13]
        release.set()
        late = gather(grid, [messages[0].metadata.message_id])
        assert [reply.metadata.src_node_id for reply in late.values()] == [11]


def test_what_a_grid_cannot_be_made_of() -> None:
    with pytest.raises(ValueError, match="workers"):
        InProcessGrid(app=make_app(), nodes=NODES, workers=0)
    with pytest.raises(ValueError, match="coordinator"):
        InProcessGrid(app=make_app(), nodes={1: {}})
