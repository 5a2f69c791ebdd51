"""A coordinator's ClientApp that asks the worker for everything, in every order: it gets charged releases, within the budget.

The worker is a real one with noise from the operating system, behind its real socket. What counts is the number of
different answers: each is a release, and each must be paid for in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.config.platform_file import load
from client.messenger.unix_socket import connect_to, listen
from client.messenger.wire import WIRE, Frame, pack_record, receive, send, unpack_record
from client.messenger.worker_link import Remote
from client.worker.request_handler import Worker
from client.worker.socket_server import Door
from shared.base.errors import ProtocolError
from shared.base.settings import Settings, settings_digest
from shared.base.version import VERSION
from shared.ledger.reading import read_ledger
from shared.model.adapter import initial
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import (
    PROTOCOL,
    Answer,
    Evaluate,
    Factors,
    Join,
    Joined,
    Label,
    Metrics,
    Reason,
    Refusal,
    Request,
    Train,
    Update,
)
from shared.protocol.run_authorization import Warrant, federation_of
from tests.support.identities import with_identity

Write = Callable[..., Path]
Make = Callable[..., Settings]
BUDGET = 20.0
KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))


def warrant_of(key: Ed25519PrivateKey, settings: Settings, run: str) -> str:
    federation = federation_of(KEY.public_key().public_bytes_raw())
    made = Warrant(federation=federation, run=run, settings=settings_digest(settings), expires=int(time.time()) + 3600)
    return made.signed(key).text()


class Coordinator:
    """The hostile one. It owns the federation's key, so its warrants are in order; what it does with them is not."""

    def __init__(self, socket: Path, ledger: Path, settings: Settings) -> None:
        self.socket, self.ledger, self.settings = socket, ledger, settings
        self.answers: list[Answer] = []

    def ask(self, request: Request, *, key: Ed25519PrivateKey = KEY) -> Answer:
        link = Remote(path=self.socket, warrant=warrant_of(key, request.settings, request.run), patience=0.0)
        answer = link.ask(request)
        self.answers.append(answer)
        return answer

    def join(self, run: str = "run-1", settings: Settings | None = None) -> Answer:
        return self.ask(Join(run=run, settings=settings or self.settings))

    def train(self, round_: int, run: str = "run-1", **over: Any) -> Answer:
        values = {"settings": self.settings, "round": round_, "factors": Factors.BOTH, "adapter": initial(self.settings)}
        return self.ask(Train(run=run, **{**values, **over}))

    def evaluate(self, label: Label, round_: int, run: str = "run-1", **over: Any) -> Answer:
        values = {"settings": self.settings, "round": round_, "label": label, "adapter": initial(self.settings)}
        return self.ask(Evaluate(run=run, **{**values, **over}))

    def releases(self) -> set[str]:
        """Different noised things that were handed out: updates and metrics, whatever was said around them."""
        found = set()
        for answer in self.answers:
            if isinstance(answer, Update):
                found.add(hashlib.sha256(b"".join(answer.change[name].tobytes() for name in sorted(answer.change))).hexdigest())
            elif isinstance(answer, Metrics):
                found.add(" ".join(map(repr, answer.quality.values())))
        return found

    def require_everything_paid(self) -> None:
        ledger = read_ledger(self.ledger)
        paid = [entry for entry in ledger.entries if str(entry.kind) != "popularity"]
        assert len(self.releases()) <= len(paid)
        assert ledger.epsilon <= BUDGET
        said = [answer.ledger for answer in self.answers if isinstance(answer, Update | Metrics)]
        hashes = {line.hash for line in ledger.lines}
        assert set(said) <= hashes  # every answer's receipt is a line of the ledger


@pytest.fixture
def coordinator(write_platform: Write, tiny_settings: Make, tiny_bert: str, tmp_path: Path) -> Iterator[Coordinator]:
    line = KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    terms = (
        f'[federation]\ncoordinator = "{line}"\nbackbones = [{json.dumps(tiny_bert)}]\nmaximum_rounds = 4\nanswer_step = 0.01\n'
    )
    path = write_platform(declared=41, privacy=f"epsilon = {BUDGET}\ndelta = 1e-3", extra=terms)
    ledger = tmp_path / "ledger.jsonl"
    worker = Worker(load(path), state=with_identity(tmp_path / "state"), ledger=ledger, device=torch.device("cpu"))
    worker.hold()
    settings = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": None}, training={"local_steps": 1})
    with Door(worker, listen(tmp_path / "worker.sock"), body=1 << 22, request=5.0):
        yield Coordinator(tmp_path / "worker.sock", ledger, settings)
    worker.close()


def test_asking_often_gets_one_answer(coordinator: Coordinator) -> None:
    coordinator.join()
    first = coordinator.train(1)
    charged = read_ledger(coordinator.ledger).entries
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: coordinator.train(1), range(120)))
    assert isinstance(first, Update)
    for answer in answers:
        assert isinstance(answer, Update)
        assert all((answer.change[name] == value).all() for name, value in first.change.items())
    for _ in range(40):
        coordinator.evaluate(Label.BEFORE, 0)
    assert len(coordinator.releases()) == 2
    assert [str(entry.kind) for entry in read_ledger(coordinator.ledger).entries] == [*[str(e.kind) for e in charged], "evaluate"]
    coordinator.require_everything_paid()


def test_every_order_of_phases(coordinator: Coordinator) -> None:
    """Rounds backwards, rounds that do not exist, evaluations of every round and model, before any join."""
    random = np.random.default_rng(0)
    other = {name: value + 1.0 for name, value in initial(coordinator.settings).items()}
    asks: list[Callable[[], Answer]] = [coordinator.join]
    asks += [lambda r=r: coordinator.train(r) for r in (0, 1, 2, 3, 99, 2**40)]  # type: ignore[misc]
    asks += [lambda f=f: coordinator.train(2, factors=f) for f in Factors]  # type: ignore[misc]
    asks += [lambda r=r, v=v: coordinator.evaluate(v, r) for r in (0, 1, 2, 3, 2**40) for v in Label]  # type: ignore[misc]
    asks += [lambda: coordinator.evaluate(Label.FEDERATED, 1, adapter=other), lambda: coordinator.train(1, adapter=other)]
    for at in random.permutation(len(asks) * 3):
        coordinator.train(1) if at == 0 else asks[at % len(asks)]()
    refused = [answer for answer in coordinator.answers if isinstance(answer, Refusal)]
    assert {answer.reason for answer in refused} >= {Reason.ROUND}
    entries = [str(entry.kind) for entry in read_ledger(coordinator.ledger).entries]
    assert entries.count("popularity") == 1
    assert entries.count("train") <= 2
    assert entries.count("evaluate") <= 2  # as many as the plan paid for
    coordinator.require_everything_paid()


def test_run_after_run_until_nothing_is_left(coordinator: Coordinator) -> None:
    """A new run each time: every one of them is a release, and the budget of all of them is one."""
    for number in range(12):
        run = f"run-{number}"
        if isinstance(coordinator.join(run), Refusal):
            continue
        coordinator.train(1, run)
        coordinator.train(2, run)
    refusals = [answer for answer in coordinator.answers if isinstance(answer, Refusal)]
    assert refusals and all(answer.reason in (Reason.BUDGET, Reason.NOISE, Reason.SETTINGS) for answer in refusals)
    coordinator.require_everything_paid()


def test_settings_that_would_weaken_the_promise(coordinator: Coordinator, tiny_settings: Make) -> None:
    def asks(**over: Any) -> Settings:
        return tiny_settings(**{"simulation": False, "privacy": {"generator": "secure", "epsilon": None}, **over})

    hostile = [
        tiny_settings(),  # a simulation: exact metrics, seeded noise
        asks(rounds=5),
        asks(rounds=10**4),
        asks(model={"backbone": "/etc"}),
        asks(model={"backbone": "somebody/evil"}),
    ]
    for number, settings in enumerate(hostile):
        answer = coordinator.join(f"hostile-{number}", settings)
        assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
    assert read_ledger(coordinator.ledger).entries == ()
    # A deployed run cannot turn privacy off, and a large epsilon is the coordinator's wish, not the platform's.
    answer = coordinator.join("off", asks(privacy={"generator": "secure", "epsilon": float("inf")}))
    assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS
    joined = coordinator.join("loose", asks(privacy={"generator": "secure", "epsilon": 1e6}))
    assert isinstance(joined, Joined) and joined.planned_epsilon <= BUDGET and joined.noise_multiplier > 0
    # And a run cannot change its settings once it has begun.
    answer = coordinator.join("loose", asks(training={"clip": 50.0}))
    assert isinstance(answer, Refusal) and answer.reason is Reason.SETTINGS


def test_another_federations_id(coordinator: Coordinator) -> None:
    coordinator.join()
    coordinator.train(1)
    got = len(coordinator.releases())
    for request in (Join(run="run-1", settings=coordinator.settings), Join(run="run-2", settings=coordinator.settings)):
        answer = coordinator.ask(request, key=OTHER)
        assert isinstance(answer, Refusal) and answer.reason is Reason.WARRANT
    remembered = Train(
        run="run-1", settings=coordinator.settings, round=1, factors=Factors.BOTH, adapter=initial(coordinator.settings)
    )
    answer = coordinator.ask(remembered, key=OTHER)  # not even what was answered to its owner already
    assert isinstance(answer, Refusal) and answer.reason is Reason.WARRANT
    assert len(coordinator.releases()) == got


def test_malformed_and_oversized_requests(coordinator: Coordinator) -> None:
    assert isinstance(coordinator.join(), Joined)
    adapter = initial(coordinator.settings)
    name = next(iter(adapter))
    spoiled = [
        {**adapter, name: np.full_like(adapter[name], np.nan)},
        {**adapter, name: np.full_like(adapter[name], np.inf)},
        {**adapter, name: adapter[name][:, :1]},
        {key: value for key, value in adapter.items() if key != name},
        {**adapter, "stowaway": np.ones((3, 3), np.float32)},
        {**adapter, "../../ledger.jsonl": np.ones((3, 3), np.float32)},
    ]
    for spoil in spoiled:
        answer = coordinator.train(1, adapter=spoil)
        assert isinstance(answer, Refusal) and answer.reason is Reason.MESSAGE
    with pytest.raises(ProtocolError):
        coordinator.train(1, adapter={**adapter, "huge": np.ones((2048, 1024), np.float32)})
    header = pack_record("request", to_record(Join(run="run-1", settings=coordinator.settings))).header
    for kind in ("shell", "ledger", "__class__", ""):
        frame = Frame(header={**header, "scalars": {"fedfuse": {"protocol": PROTOCOL, "kind": kind, "run": "run-1"}}})
        with connect_to(coordinator.socket) as connection:
            hello = {"type": "hello", "wire": WIRE, "protocol": PROTOCOL, "version": VERSION, "warrant": ""}
            send(connection, Frame(header=hello))
            receive(connection, seconds=5.0)
            send(connection, frame)
            assert answer_from(unpack_record(receive(connection, seconds=5.0))).reason is Reason.MESSAGE  # type: ignore[union-attr]
    assert "train" not in [str(entry.kind) for entry in read_ledger(coordinator.ledger).entries]
    assert isinstance(coordinator.join(), Joined)  # and it still answers what is in order
    coordinator.require_everything_paid()
