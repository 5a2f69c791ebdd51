"""A federation's status: each number is what the server, the list of platforms and the runs have of it, and how it is shown."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.deployment.approved_platforms import Platforms
from server.deployment.flower_control import Node, Unreachable
from server.deployment.folder import CoordinatorFolder
from server.deployment.provisioning import create_coordinator_folder
from server.deployment.status import PlatformStatus, Status, render_status, status_of
from shared.base.errors import FedfuseError
from shared.protocol.fingerprint_words import federation_number
from shared.protocol.invitation import fingerprint_of
from tests.server.deployment.test_provisioning import application
from tests.support.control_double import ControlDouble
from tests.support.printed import tidy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorFolder:
    folder = tmp_path_factory.mktemp("status") / "made"
    return create_coordinator_folder(folder, host="h", name="spring", port=8000, control_port=1, listen="127.0.0.1")


@pytest.fixture
def coordinator(made: CoordinatorFolder, tmp_path: Path) -> CoordinatorFolder:
    """One with shared certificates, and a separate list of platforms and runs."""
    for name in ("ca", "tls"):
        (tmp_path / name).symlink_to(made.folder / name)
    return CoordinatorFolder(folder=tmp_path, file=made.file)


class Server(ControlDouble):
    """A coordinator's server with the SuperNodes that a test gives it."""

    def __init__(self) -> None:
        self.here: list[Node] = []
        self.saw: dict[str, Any] = {}

    def nodes(self) -> list[Node]:
        return self.here

    def seen(self) -> dict[str, Any]:
        return self.saw


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr("server.deployment.status.Control", found)
    return found


@pytest.fixture
def add(coordinator: CoordinatorFolder) -> Callable[..., None]:
    """Approves a platform, which Flower knows under that number."""

    def one(name: str, node: int) -> None:
        asked = application(coordinator.folder / "keys" / str(node), name)
        platforms = Platforms(coordinator.platforms)
        platforms.approve(asked, replace_with=asked.fingerprint)
        platforms.registered(asked.node_key, node)

    return one


def ran(coordinator: CoordinatorFolder, run: str, *, at: float, **lines: dict[str, Any]) -> None:
    folder = coordinator.run(run)
    folder.mkdir(parents=True)
    values = {"run": run, "state": "running", "round": 2, "rounds": 5, "time": at, "platforms": lines}
    (folder / "state.json").write_text(json.dumps(values))


def test_a_platform_is_as_flower_and_the_gate_saw_it(
    coordinator: CoordinatorFolder, server: Server, add: Callable[..., None]
) -> None:
    connections = {"a": "online", "b": "offline", "c": "never came", "d": "never came", "e": "shut out"}
    for number, name in enumerate(connections, start=1):
        add(name, number)
    Platforms(coordinator.platforms).revoke("e")
    words = {1: "online", 2: "offline", 3: "registered", 5: "online"}
    server.here = [Node(node=node, name="", status=word, seen="") for node, word in words.items()]
    now = time.time()
    server.saw = {
        "a": {"last": now - 60, "version": "0.9", "refused": now - 61, "reason": "too old"},
        "b": {"last": now - 60, "refused": now - 59, "reason": "too old"},
        "c": {"last": 0, "refused": 0.5, "reason": "another key"},
        "e": {"last": now, "refused": now},
        "stranger": {"reason": "is not known", "refused": now},
        "quiet": {"last": now},
    }
    found = status_of(coordinator)
    assert found.server and found.strangers == {"stranger": "is not known"} and found.run == {}
    assert {one.name: one.connection for one in found.platforms} == connections
    assert [one.standing for one in found.platforms] == ["approved"] * 4 + ["revoked"]
    assert [one.version for one in found.platforms] == ["0.9", "", "", "", ""]
    assert [one.refused for one in found.platforms] == ["", "too old", "another key", "", ""]
    assert [one.seen if one.seen is None else round(one.seen) for one in found.platforms] == [60, 60, None, None, 0]
    known = {one.name: one.identity for one in Platforms(coordinator.platforms).all()}
    assert {one.name: one.fingerprint for one in found.platforms} == {name: fingerprint_of(key) for name, key in known.items()}
    known.pop("e")
    assert found.number == federation_number("spring", known)


def test_without_the_server_nothing_is_known_of_connections(
    coordinator: CoordinatorFolder, add: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(coordinator: CoordinatorFolder) -> None:
        raise Unreachable("gone")

    monkeypatch.setattr("server.deployment.status.Control", away)
    add("a", 1)
    found = status_of(coordinator)
    assert not found.server and [one.connection for one in found.platforms] == ["unknown"]


def test_a_platform_with_new_keys_is_there_once(coordinator: CoordinatorFolder, server: Server, add: Callable[..., None]) -> None:
    add("a", 1)
    add("a", 2)
    server.here = [Node(node=1, name="", status="offline", seen=""), Node(node=2, name="", status="online", seen="")]
    (one,) = status_of(coordinator).platforms
    assert (one.standing, one.connection) == ("approved", "online")


def test_numbers_are_of_the_newest_run_that_has_them(
    coordinator: CoordinatorFolder, server: Server, add: Callable[..., None]
) -> None:
    for number, name in enumerate("abcd", start=1):
        add(name, number)
    line = {"users": 9, "rounds": 5, "budget": 8.0, "delta": 1e-5, "trouble": "no answer"}
    ran(coordinator, "old", at=1.0, a={**line, "epsilon": 1.5}, b={**line, "epsilon": 9.0}, c={**line, "epsilon": 0.25})
    first = {**line, "epsilon": 2.0, "rounds": 1, "trouble": ""}
    silent = {"users": 0, "epsilon": 3.0, "budget": "inf"}
    ran(coordinator, "new", at=2.0, a=first, b={**line, "epsilon": 0.0, "rounds": 0}, c=silent)
    found = status_of(coordinator)
    assert found.run["run"] == "new"
    shown = {one.name: (one.rounds, one.spent, one.budget, one.left, one.trouble) for one in found.platforms}
    assert shown == {
        "a": (1, 2.0, 8.0, 6.0, ""),
        "b": (0, 9.0, 8.0, 0.0, "no answer"),  # what is left is never less than nothing
        "c": (0, 0.25, 8.0, 7.75, ""),
        "d": (0, None, None, None, ""),
    }
    assert [one.delta for one in found.platforms] == [1e-5, 1e-5, 1e-5, None]
    # What holds no number takes none away that an earlier run has.
    ran(coordinator, "bare", at=2.5, a={"users": 9, "budget": 8.0})
    assert status_of(coordinator).platforms[0].spent == 2.0
    # Who has answered no run at all: nobody knows what it has spent.
    ran(coordinator, "newest", at=3.0, d={"users": 0, "epsilon": 0.0, "budget": 8.0, "rounds": 0})
    assert status_of(coordinator).platforms[3].spent is None


def test_a_damaged_run_is_named(coordinator: CoordinatorFolder, server: Server) -> None:
    ran(coordinator, "r", at=1.0)
    (coordinator.run("r") / "state.json").write_text('{"run": "r"}')
    with pytest.raises(FedfuseError, match="state of a run is damaged"):
        status_of(coordinator)


def shown(status: Status) -> list[str]:
    file = StringIO()
    Console(file=file, width=200).print(render_status(status))
    return tidy(file.getvalue()).splitlines()


def platform(name: str, **over: Any) -> PlatformStatus:
    return PlatformStatus(**{"name": name, "standing": "approved", "fingerprint": "", "connection": "online", **over})


FULL = Status(
    federation="sp[r]ing", address="h:1", server=True, certificate=29.6, number="0123",
    platforms=[
        platform("a", seen=59.9, rounds=12, spent=1.5, budget=8.0, trouble="no [answer]", refused="old"),
        platform("bb", seen=0.0, refused="too old", spent=1.0),
        platform("c", standing="revoked", connection="shut out", spent=0.126, budget=math.inf),
    ],
    run={"run": "r[1]", "state": "running", "round": 2, "rounds": 5, "time": 1.9e9, "why": "wa[i]ts",
         "left_out": {f"p{at}": f"p{at} is [left] out" for at in range(11)}},
    strangers={f"s{at}": f"[key] {at}" for at in range(11)},
)  # fmt: skip


def test_on_a_terminal() -> None:
    lines = shown(FULL)
    assert lines[0] == "federation sp[r]ing at h:1: the server runs, its certificate holds for 30 days"
    assert lines[1].split() == ["platform", "standing", "connection", "rounds", "ε", "of", "budget", "last", "trouble"]
    assert [" ".join(line.split()) for line in lines[2:5]] == [
        f"a approved online, {ago(59.9)} 12 1.50 of 8 no [answer]",
        f"bb approved online, {ago(0.0)} 0 - refused: too old",
        "c revoked shut out 0 0.13 of inf -",
    ]
    for head in ("rounds", "ε of budget"):  # numbers end where their heads do
        end = lines[1].index(head) + len(head)
        assert all(line[end - 1] != " " and line[end] == " " for line in lines[2:5])
    for head in ("platform", "standing", "connection", "last trouble"):
        begin = lines[1].index(head)
        assert all(line[begin] != " " and line[begin - 1 : begin] in ("", " ") for line in lines[2:5])
    assert lines[5:7] == [
        "number 0123 of all that are approved: platforms compare it (fedfuse client trust)",
        "run r[1]: running, round 2 of 5 (2030-03-17 17:46:40 UTC): wa[i]ts",
    ]
    assert lines[7:] == [f"p{at} is [left] out" for at in range(10)] + [f"refused: s{at}: [key] {at}" for at in range(10)]


def test_what_is_not_there_is_not_shown() -> None:
    bare = Status(federation="spring", address="h:1", server=False, certificate=3.0, platforms=[])
    assert shown(bare)[0] == "federation spring at h:1: the server does not answer"
    assert len(shown(bare)) == 2
    run = {"run": "r", "state": "finished", "round": 5, "rounds": 5}
    assert shown(Status(federation="s", address="h:1", server=False, certificate=3.0, platforms=[], run=run))[-1] == (
        "run r: finished, round 5 of 5 (1970-01-01 00:00:00 UTC)"
    )


def ago(seconds: float) -> str:
    (line,) = [line for line in shown(Status(federation="s", address="h:1", server=True, certificate=1.0,
               platforms=[platform("x", seen=seconds)])) if line.strip().startswith("x")]  # fmt: skip
    return line.split("online, ")[1].split("  ")[0].strip()


@pytest.mark.parametrize(("seconds", "words"), [
    (0.0, "0 s ago"), (119.4, "119 s ago"), (120.0, "2 min ago"), (7199.0, "120 min ago"), (7200.0, "2 h ago"),
])  # fmt: skip
def test_how_long_ago(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_for_machines_an_infinite_epsilon_is_a_word() -> None:
    values = FULL.to_json()
    json.loads(json.dumps(values, allow_nan=False))
    assert [(one["spent"], one["budget"], one["left"]) for one in values["platforms"]] == [
        (1.5, 8.0, 6.5), (1.0, None, None), (0.126, "inf", "inf")
    ]  # fmt: skip
    assert values["run"]["run"] == "r[1]" and "platforms" not in values["run"] and values["certificate"] == 29.6
