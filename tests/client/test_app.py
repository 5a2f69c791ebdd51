"""The messenger carries, refuses what it cannot read, and imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import Unanswered, app
from client.messenger import worker_link as link
from shared.base.errors import InputError, ProtocolError
from shared.base.settings import Settings
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import (
    Answer,
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Metrics,
    Personalise,
    Personalised,
    Reason,
    Refusal,
    Request,
    Train,
    Update,
)
from tests.support.qualities import quality_of

ROOT = Path(__file__).parents[2]
ADAPTER = {"head.lora_A": np.ones((2, 3), np.float32)}


class Scripted:
    """A link that answers each kind of request with what a platform would."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def ask(self, request: Request, receipt: str = "") -> Answer:
        self.asked.append(request)
        if isinstance(request, Join):
            return Joined(
                run=request.run, platform="movies", users=9, items=5, budget=8.0, delta=1e-5,
                planned_epsilon=float("inf"), noise_multiplier=1.0, signal_to_noise=2.0,
            )  # fmt: skip
        if isinstance(request, Train):
            return Update(
                run=request.run, platform="movies", round=request.round, users=9, epsilon=1.0, ledger="", seconds=0.1,
                change=request.adapter,
            )  # fmt: skip
        if isinstance(request, Personalise):
            return Personalised(
                run=request.run, platform="movies", round=request.round, users=9, chosen=True, epsilon=1.0, ledger="", seconds=0.1
            )
        return Metrics(
            run=request.run, platform="movies", round=request.round, label=request.label, users=9,
            quality=quality_of({"ndcg@10": 0.1, "hr@10": 0.2}),
            exact=False, epsilon=1.0, ledger="", seconds=0.1,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    link.register("movies", made)
    yield made
    link.forget("movies")


def context(run_config: dict[str, Any] | None = None, **node_config: Any) -> Context:
    return Context(1, 5, node_config, RecordDict(), run_config or {})


def carried(request: Request, kind: str, **node_config: Any) -> Answer:
    message = Message(to_record(request), 5, kind)
    reply = app(message, context(**node_config))
    assert reply.metadata.dst_node_id == message.metadata.src_node_id
    return answer_from(reply.content)


REQUESTS = [
    (Join(run="r", settings=Settings()), "query", Joined),
    (Train(run="r", settings=Settings(), round=2, factors=Factors.B, adapter=ADAPTER), "train", Update),
    (Evaluate(run="r", settings=Settings(), round=2, label=Label.BEFORE, adapter=ADAPTER), "evaluate", Metrics),
    (Personalise(run="r", settings=Settings(), round=10, adapter=ADAPTER), "train", Personalised),
]


@pytest.mark.parametrize(("request_", "kind", "answer"), REQUESTS, ids=["join", "train", "evaluate", "personalise"])
def test_requests_arrive_whole_and_answers_come_back(
    scripted: Scripted, request_: Request, kind: str, answer: type[Answer]
) -> None:
    got = carried(request_, kind, link="movies")
    assert isinstance(got, answer)
    (asked,) = scripted.asked
    assert type(asked) is type(request_)
    assert (asked.run, asked.settings) == (request_.run, request_.settings)
    if isinstance(got, Update):
        np.testing.assert_array_equal(got.change["head.lora_A"], ADAPTER["head.lora_A"])


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"fedfuse": ConfigRecord({"protocol": 1, "kind": "join"})}),
        RecordDict({"fedfuse": ConfigRecord({"protocol": 999, "kind": "join", "run": "r", "settings": "{}"})}),
        to_record(Refusal(run="r", platform="p", round=1, reason=Reason.FAILED)),
    ],
    ids=["empty", "fields missing", "another version", "an answer"],
)
def test_what_is_no_request_is_refused_without_asking_the_worker(scripted: Scripted, record: RecordDict, kind: str) -> None:
    reply = app(Message(record, 5, kind), context(link="movies"))
    assert answer_from(reply.content) == Refusal(run="unknown", platform="unknown", round=0, reason=Reason.MESSAGE)
    assert scripted.asked == []


def test_a_request_of_another_kind_is_refused(scripted: Scripted) -> None:
    """A Train smuggled in as a query would pass whatever limits a node sets on Flower's message types."""
    got = carried(REQUESTS[1][0], "query", link="movies")
    assert isinstance(got, Refusal) and got.reason is Reason.MESSAGE
    assert scripted.asked == []


def test_a_worker_that_breaks_says_nothing_of_its_rows() -> None:
    class Broken:
        def ask(self, request: Request, receipt: str = "") -> Answer:
            raise RuntimeError("user 4711 has no history")

    link.register("broken", Broken())
    try:
        with pytest.raises(Unanswered) as caught:
            carried(REQUESTS[0][0], "query", link="broken")
    finally:
        link.forget("broken")
    assert str(caught.value) == "failed"  # the text is what Flower sends
    assert "4711" in str(caught.value.__cause__)


def test_a_link_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(ProtocolError, match="'elsewhere'") as caught:
        link.connect(context(link="elsewhere"))
    assert "register" in caught.value.do
    # Without a world the ServerApp generates one; here none did.
    with pytest.raises(InputError, match="0 platforms"):
        link.connect(context(**{"partition-id": 0}))
    with pytest.raises(ProtocolError):
        link.connect(context({"world": "w", "out": "o"}))  # a deployed node has no partition


def test_a_key_belongs_to_one_link(scripted: Scripted) -> None:
    with pytest.raises(ValueError, match="taken"):
        link.register("movies", Scripted())
    link.register("movies", scripted)


def test_a_simulated_node_opens_its_platform_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, int, str]] = []

    class Worker:
        def __init__(self, index: int) -> None:
            self.index = index

        def handle(self, request: Request) -> Answer:
            return Refusal(run=request.run, platform=f"p{self.index}", round=0, reason=Reason.SOURCES)

    def open_partition(*, world: str, index: int, state: str) -> Worker:
        opened.append((world, index, state))
        return Worker(index)

    module = types.ModuleType("client.worker.request_handler")
    module.open_partition = open_partition  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "client.worker.request_handler", module)
    config = {"world": "/a-world", "out": "/a-run"}
    nodes = [context(config, **{"partition-id": index % 2}) for index in range(8)]
    threads = [threading.Thread(target=link.connect, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened) == [("/a-world", 0, "/a-run"), ("/a-world", 1, "/a-run")]
    assert link.connect(nodes[1]).ask(Join(run="r", settings=Settings())).platform == "p1"


def test_importing_the_messenger_is_light() -> None:
    """In a deployment every message pays for this import; torch alone would be seconds (`simulations.benchmarks.phase_cost`)."""
    script = """
import json, sys
import client.app
heavy = ("torch", "polars", "transformers", "peft", "opacus", "sqlalchemy", "client.sources", "client.worker.request_handler")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
