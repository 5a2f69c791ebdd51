"""A federation in the middle of its life: platforms, runs of every kind, one of them at work, models, several operators."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.console import overview
from server.deployment.approved_platforms import ApprovedPlatform, Platforms
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.deployment.launch import Launch, record
from server.deployment.provisioning import create_coordinator_folder
from server.deployment.status import Status, status_of
from server.monitoring.journal import EVENTS, Journal
from server.monitoring.run_events import Event, Kind
from server.operators.log_writer import ActingOperator, public_text
from server.operators.operator_log import KEY, MAY
from server.operators.rights import Verb
from server.registry.published_note import note_published
from server.registry.registry import Registry
from server.registry.store import open_store
from server.scheduling.run_notes import note_abort
from server.scheduling.turns import Turn
from shared.base.settings import build
from shared.protocol.invitation import fingerprint_of
from shared.protocol.keys import load_ed25519
from shared.registry.signing import load_signer
from tests.server.conftest import tally_of
from tests.server.deployment.test_provisioning import application

ALICE, BOB = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (2, 3))
TOKEN = "t" * 43
NAMES = ("books", "music", "series", "shop")


@pytest.fixture
def federation(tmp_path: Path, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[CoordinatorFolder]:
    """The coordinator's folder; its server seems to run."""
    folder = tmp_path / "coordinator"
    create_coordinator_folder(folder, host="fed.example.org", name="spring", port=8000, control_port=1, listen="127.0.0.1")
    text = (folder / "server.toml").read_text()
    (folder / "server.toml").write_text(text.replace('registry = ""', f'registry = "{tmp_path}/registry"'))
    coordinator = open_coordinator(folder)
    _operate(coordinator, tmp_path)
    _publish(coordinator, make_run("spring-1"), tmp_path)
    with ExitStack() as stack:
        _run_all(coordinator, stack)
        monkeypatch.setattr(overview, "status_of", _as_if_it_ran)
        yield coordinator


def _as_if_it_ran(coordinator: CoordinatorFolder) -> Status:
    found = status_of(coordinator)
    seen = {"books": ("online", 2.0), "music": ("online", 40.0), "series": ("offline", 1500.0)}
    platforms = [
        replace(one, connection=seen[one.name][0], seen=seen[one.name][1], version="0.1.0") if one.name in seen else one
        for one in found.platforms
    ]
    return replace(
        found, server=True, platforms=platforms, strangers={"key SHA256:qJx0": "the coordinator does not know this key"}
    )


def _operate(coordinator: CoordinatorFolder, tmp_path: Path) -> None:
    folder, platforms = coordinator.operators, Platforms(coordinator.platforms)
    owner = ActingOperator(folder, load_ed25519(coordinator.operator_key), where="a key")
    for name, key, may in (("alice", ALICE, "run,publish"), ("bob", BOB, "invite,approve,revoke")):
        owner.record(Verb.ADD_OPERATOR, name, {KEY: public_text(key), MAY: may})
    alice, bob = (ActingOperator(folder, key, where="a key") for key in (ALICE, BOB))
    for name in NAMES:
        asked = application(tmp_path, name)
        bob.record(Verb.INVITE, name)
        platforms.approve(
            asked,
            record=lambda new, old, asked=asked: bob.record(
                Verb.APPROVE, new.name, {"fingerprint": asked.fingerprint, "node": new.fingerprint}
            ),
        )

    def record(one: ApprovedPlatform) -> None:
        bob.record(Verb.REVOKE, "shop", {"node": one.fingerprint, "fingerprint": fingerprint_of(one.identity)})

    platforms.revoke("shop", record=record)
    for run in ("spring-1", "spring-2", "spring-3", "spring-4", "spring-5"):
        alice.record(Verb.RUN, run, {"strategy": "secure-sum", "rounds": "20", "epsilon": "2"})
    alice.record(Verb.ABORT, "spring-3", {"state": "running", "round": "2"})


def _publish(coordinator: CoordinatorFolder, made: Path, tmp_path: Path) -> None:
    target = coordinator.run("spring-1")
    target.parent.mkdir(exist_ok=True)
    made.rename(target)
    signer = load_signer(coordinator.model_key)
    manifest = Registry(open_store(coordinator.file.registry), [signer.public]).publish(target, signer)
    note_published(target, coordinator.file.registry, manifest)


def _run_all(coordinator: CoordinatorFolder, stack: ExitStack) -> None:
    now = time.time()
    plans: dict[str, dict[str, Any]] = {
        "spring-1": {"strategy": "secure-sum", "rounds": 20, "privacy": {"epsilon": 2.0}},
        "spring-2": {"strategy": "secure-sum", "rounds": 20},
        "spring-3": {"strategy": "preferences", "rounds": 0},
        "spring-4": {"strategy": "secure-sum", "rounds": 20, "privacy": {"epsilon": 1.0}},
        "spring-5": {"strategy": "fedavg", "rounds": 10},
    }
    for number, (run, values) in enumerate(plans.items()):
        launch = Launch(coordinator=coordinator, run=run, settings=build(values, where="a test"))
        (launch.folder / "run.toml").unlink(missing_ok=True)
        if launch.folder.exists():
            aside = launch.folder.rename(launch.folder.with_name("aside"))
            record(launch)
            (launch.folder / "run.toml").rename(aside / "run.toml")
            launch.folder.rmdir()
            aside.rename(launch.folder)
        else:
            record(launch)
        path = launch.folder / "run.toml"
        began = now - 86400 * (len(plans) - number)
        lines = [f"created = {began}" if line.startswith("created") else line for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    play(coordinator, "spring-1", rounds=20, done=20, epsilon=2.0, state="finished", why="the model is version 1")
    play(coordinator, "spring-2", rounds=20, done=18, epsilon=3.4, state="incomplete", why="18 of 20 rounds count", code=7)
    note_abort(coordinator.run("spring-3"), by="alice")
    play(coordinator, "spring-4", rounds=20, done=7, epsilon=3.9, state="running", last=now)
    stack.enter_context(Turn(coordinator, "spring-4", waits=False))
    stack.enter_context(Turn(coordinator, "spring-5", waits=True))


def play(
    coordinator: CoordinatorFolder,
    run: str,
    *,
    rounds: int,
    done: int,
    epsilon: float,
    state: str,
    last: float = 0.0,
    **over: Any,
) -> None:
    """What a run of books and music leaves, of which series is left out."""
    folder = coordinator.run(run)
    journal = Journal(folder=folder, run=run, rounds=rounds)
    for name in ("books", "music"):
        journal(Event(kind=Kind.JOINED, round=0, text=f"{name} joins: 20,000 users, 9,000 items", platform=name))
    why = "series is left out: `books` and `music` do not know `series`: run `fedfuse client trust` on each of these platforms"
    journal(Event(kind=Kind.REFUSED, round=0, text=why, platform="series"))
    for number in range(1, done + 1):
        spent = {name: tally_of(name, epsilon=epsilon * share, rounds=number) for name, share in (("books", 1.0), ("music", 0.6))}
        journal(Event(kind=Kind.ROUND, round=number, text=f"round {number} of {rounds} is done: 2 answers", tallies=spent))
    lines = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    for place, line in enumerate(lines):
        line["time"] = last - sum(20 + 7 * ((3 * at) % 5) for at in range(place, len(lines)))
    (folder / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal.say(state, **over)
