"""The worker's and the messenger's logs: what an operator needs, and nothing of a row, whatever goes wrong."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from prometheus_client import CollectorRegistry

from client.app import Unanswered, app
from client.config.platform_file import load
from client.messenger import worker_link as link
from client.run.local_session import LocalSession
from client.worker.request_handler import Worker
from client.worker.telemetry import WorkerMetrics
from shared.base.errors import InputError, PrivacyError
from shared.base.logs import configure
from shared.base.settings import Settings
from shared.model.adapter import initial
from shared.protocol.flower_records import to_record
from shared.protocol.messages import Answer, Count, Evaluate, Factors, Join, Label, Refusal, Request, Sum, Summed, Train

Write = Callable[..., Path]
Make = Callable[..., Settings]
CANARIES = ("zebrafinch", "quokka", "axolotl", "u17", "wombatnote", "4711.25")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the worker's package logs from now on, at its most talkative."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    names = ("fedfuse", "client", "server", "shared", "strategies", "simulations", "flwr")
    levels = {name: logging.getLogger(name).level for name in names}
    stream = io.StringIO()
    configure("worker", form="json", level="debug", stream=stream)
    yield stream
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)


@pytest.fixture
def open_worker(write_platform: Write, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Opens a worker of a platform whose private places hold canaries."""
    opened: list[Worker] = []

    def make(extra: str = "", files: dict[str, str] | None = None, observer: Any = None) -> Worker:
        profiles = "\n".join(["user,job,pay", *(f"u{user},zebrafinch,4711.25" for user in range(30))]) + "\n"
        notes = "\n".join(["user,item,text", *(f"u{user},i{user % 12},wombatnote quokka" for user in range(30))]) + "\n"
        sources = (
            '[sources.people]\nkind = "profiles"\npath = "p.csv"\ntext = ["job"]\n'
            '[sources.notes]\nkind = "reviews"\npath = "n.csv"\n'
        )
        path = write_platform(declared=977, extra=sources + extra, files={"p.csv": profiles, "n.csv": notes, **(files or {})})
        worker = Worker(
            load(path),
            state=tmp_path / "state",
            ledger=tmp_path / "ledger.jsonl",
            simulation=True,
            device=torch.device("cpu"),
            observer=observer,
        )
        opened.append(worker)
        return worker

    yield make
    for worker in opened:
        worker.close()


def train(settings: Settings, round_: int) -> Train:
    return Train(run="run-1", settings=settings, round=round_, factors=Factors.BOTH, adapter=initial(settings))


def clean(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines, once it is sure that none of them holds a canary."""
    text = stream.getvalue()
    assert not [canary for canary in CANARIES if canary in text], text
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_is_told_without_a_row(open_worker: Callable[..., Worker], tiny_settings: Make, written: io.StringIO) -> None:
    worker, settings = open_worker(), tiny_settings()
    for request in (
        Join(run="run-1", settings=settings),
        train(settings, 1),
        train(settings, 1),
        train(settings, 9),
        Evaluate(run="run-1", settings=settings, round=1, label=Label.FEDERATED, adapter=initial(settings)),
    ):
        worker.handle(request)
    told = [(line["event"], line["run"], line["round"], line["platform"]) for line in clean(written) if line["event"]]
    assert told == [
        ("answered", "run-1", 0, "shop"),
        ("answered", "run-1", 1, "shop"),
        ("answered", "run-1", 1, "shop"),
        ("refused", "run-1", 9, "shop"),
        ("answered", "run-1", 1, "shop"),
    ]


@pytest.mark.parametrize(
    ("extra", "files"),
    [
        # A file without a header: its first row passes for one, and the message to a person names the columns.
        ('[sources.more]\nkind = "reviews"\npath = "m.csv"\n', {"m.csv": "zebrafinch,u17,quokka\naxolotl,u17,wombatnote\n"}),
        ('[sources.more]\nkind = "reviews"\npath = "m.csv"\n', {"m.csv": 'user,item,text\nu17,i1,"quokka never closed\n'}),
        ('[sources.more]\nkind = "reviews"\npath = "m.parquet"\n', {"m.parquet": "PAR1 axolotl"}),
        ('[sources.more]\nkind = "reviews"\npath = "m.jsonl"\n', {"m.jsonl": '{"user": "u17", "text": quokka}\n'}),
        # SQLite quotes the value that it cannot use.
        ('[sources.more]\nkind = "reviews"\nurl = "sqlite:///DB"\nquery = "SELECT json_extract(\'{}\', text) FROM t"\n', {}),
    ],
    ids=["no header", "open quote", "no parquet", "no json", "database"],
)
def test_sources_that_cannot_be_read(
    open_worker: Callable[..., Worker],
    tiny_settings: Make,
    written: io.StringIO,
    tmp_path: Path,
    extra: str,
    files: dict[str, str],
) -> None:
    with sqlite3.connect(tmp_path / "db") as database:
        database.execute("CREATE TABLE t (user, item, text)")
        database.execute("INSERT INTO t VALUES ('u17', 'i1', 'quokka')")
    database.close()
    worker = open_worker(extra.replace("DB", str(tmp_path / "db")), files)
    answer = worker.handle(Join(run="run-1", settings=tiny_settings()))
    assert isinstance(answer, Refusal) and isinstance(worker.failure, InputError)
    (line,) = [line for line in clean(written) if line["event"] == "refused"]
    assert "InputError" in line["message"] and line["platform"] == "shop"


def test_the_database_did_quote_a_row(open_worker: Callable[..., Worker], tiny_settings: Make, tmp_path: Path) -> None:
    """Else the test above would show nothing: the person at the terminal does see what the log leaves out."""
    with sqlite3.connect(tmp_path / "db") as database:
        database.execute("CREATE TABLE t (user, item, text)")
        database.execute("INSERT INTO t VALUES ('u17', 'i1', 'quokka')")
    database.close()
    query = "SELECT json_extract('{}', text) FROM t"
    extra = f'[sources.more]\nkind = "reviews"\nurl = "sqlite:///{tmp_path / "db"}"\nquery = "{query}"\n'
    worker = open_worker(extra)
    worker.handle(Join(run="run-1", settings=tiny_settings()))
    assert "quokka" in str(worker.failure) and "quokka" not in worker.failure.brief  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("u17 has zebrafinch"),
        OSError(5, "axolotl", "quokka"),
        PrivacyError("a limit was passed", quote="quokka", do="look at u17"),
        RuntimeError({"row": ["wombatnote", "4711.25"]}),
        UnicodeDecodeError("ascii", b"zebrafinch", 0, 1, "quokka"),
        KeyError("u17"),
        MemoryError("axolotl"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_inside(
    open_worker: Callable[..., Worker],
    tiny_settings: Make,
    written: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    worker, settings = open_worker(), tiny_settings()
    worker.handle(Join(run="run-1", settings=settings))

    def fail(*args: Any, **kwargs: Any) -> None:
        logging.getLogger("polars").error("could not parse %r", "zebrafinch")
        logging.getLogger("client.sources").error("it failed: %s", error)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("quokka overflowed", RuntimeWarning, stacklevel=1)
        try:
            raise LookupError("axolotl")
        except LookupError as cause:
            raise error from cause

    monkeypatch.setattr(LocalSession, "train", fail)
    answer = worker.handle(train(settings, 1))
    assert isinstance(answer, Refusal) and worker.failure is error
    refused = [line for line in clean(written) if line["event"] == "refused"]
    assert len(refused) == 1 and type(error).__name__ in refused[0]["message"]


def test_the_messenger_says_nothing_of_what_its_link_says(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    configure("messenger", form="json", level="debug", stream=written)

    class Broken:
        def ask(self, request: Request, receipt: str = "") -> Answer:
            raise RuntimeError("user u17 bought zebrafinch")

    link.register("broken", Broken())
    try:
        message = Message(to_record(Join(run="r", settings=Settings())), 5, "query")
        with pytest.raises(Unanswered) as caught:
            app(message, Context(1, 5, {"link": "broken"}, RecordDict(), {}))
    finally:
        link.forget("broken")
    # As Flower's own process does with what a ClientApp raised.
    logging.getLogger("flwr").error("%s raised an exception", "ClientApp", exc_info=caught.value)
    (line,) = clean(written)
    assert (line["component"], line["error"]["type"], line["error"]["cause"]) == ("messenger", "Unanswered", "RuntimeError")


class TestMetrics:
    def test_follow_the_worker(self, open_worker: Callable[..., Worker], tiny_settings: Make, tmp_path: Path) -> None:
        registry = CollectorRegistry()
        metrics = WorkerMetrics(registry, state=tmp_path / "state", budget=50.0)
        worker, settings = open_worker(observer=metrics), tiny_settings()

        def value(name: str, **labels: str) -> float:
            found = registry.get_sample_value(f"fedfuse_{name}", labels)
            assert found is not None, name
            return found

        assert value("epsilon_spent") == 0 and value("epsilon_budget") == 50 and value("cache_bytes") == 0
        worker.handle(Join(run="run-1", settings=settings))
        update = worker.handle(train(settings, 1))
        assert value("epsilon_spent") == update.epsilon > 0  # type: ignore[union-attr]
        assert value("steps_total") == 2 and value("round") == 1 and value("cache_bytes") > 0
        worker.handle(train(settings, 1))  # the same question: the same answer, and no step
        worker.handle(train(settings, 9))
        assert value("steps_total") == 2
        assert value("requests_total", kind="train", answer="update") == 2
        assert value("requests_total", kind="train", answer="refusal") == 1
        assert value("refusals_total", reason="round") == 1
        assert value("request_seconds_count", kind="train") == 3

    def test_hold_no_row(self, open_worker: Callable[..., Worker], tiny_settings: Make, tmp_path: Path) -> None:
        from prometheus_client import generate_latest

        registry = CollectorRegistry()
        worker = open_worker(observer=WorkerMetrics(registry, state=tmp_path / "state", budget=50.0))
        worker.handle(Join(run="run-1", settings=tiny_settings()))
        worker.handle(train(tiny_settings(), 1))
        text = generate_latest(registry).decode()
        assert not [canary for canary in CANARIES if canary in text]
        assert " 30.0" not in text  # the true number of users; 977 is declared

    def test_counts_popularities_as_no_step(self, tiny_settings: Make, tmp_path: Path) -> None:
        registry = CollectorRegistry()
        metrics = WorkerMetrics(registry, state=tmp_path, budget=50.0)
        settings = tiny_settings(strategy="secure-sum", privacy={"noise": "distributed"})
        told = {"run": "run-1", "platform": "shop", "users": 9, "ledger": "", "seconds": 0.1, "body": b""}
        metrics(Count(run="run-1", settings=settings, body=b""), Summed(round=0, epsilon=0.5, **told), 0.1)
        assert registry.get_sample_value("fedfuse_steps_total") == 0
        assert registry.get_sample_value("fedfuse_epsilon_spent") == 0.5
        adapter = initial(settings)
        request = Sum(run="run-1", settings=settings, round=1, factors=Factors.BOTH, adapter=adapter, body=b"")
        metrics(request, Summed(round=1, epsilon=0.6, **told), 0.1)
        assert registry.get_sample_value("fedfuse_steps_total") == 1  # whatever local_steps says
