"""Waiting for platforms: until enough are there, or until nobody else comes, and never in silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from server.monitoring.run_events import Kind
from server.run import attendance as attendance_module
from server.run.attendance import Attendance
from shared.base.errors import FedfuseError
from shared.base.settings import Settings
from shared.protocol.flower_records import receipt_in, request_from
from strategies.phase_report import Member


class Door:
    """A grid whose nodes are others at every look; the last ones stay."""

    def __init__(self, *looks: list[int]) -> None:
        self.looks = list(looks)

    def get_node_ids(self) -> list[int]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def attending(*looks: list[int], say: Callable[..., None] = lambda *_, **__: None, **over: Any) -> Attendance:
    """The attendance of a run that one platform is enough for, at a door."""
    door: Any = Door(*looks)
    return Attendance(grid=door, settings=Settings(), run="run", least=1, say=say, entered=lambda *_: None, **over)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def waiting(told: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def wait(*looks: list[int], wanted: int | None, seconds: float = 60.0) -> list[int]:
        def say(kind: Kind, text: str, **_: Any) -> None:
            assert kind is Kind.WAITING
            told.append(text)

        return attending(*looks, say=say).wait_for(wanted, seconds=seconds)

    return wait


def unheard(nodes: list[int]) -> Any:
    """An exchange in which nobody answers."""
    return SimpleNamespace(errors={}, silent=nodes, replies=list, arrived=list)


def test_who_is_revoked_leaves_between_two_rounds_and_may_come_back() -> None:
    said: list[str] = []

    def say(kind: Kind, text: str, **_: Any) -> None:
        said.append(f"{kind}: {text}")

    names = {2: "shop", 3: "video"}
    attendance = attending([2, 3], say=say, names=lambda: names)
    attendance._ask = unheard  # type: ignore[method-assign]
    attendance.members = {node: Member(node=node, platform=name, users=9) for node, name in names.items()}
    del names[3]
    attendance.look()
    assert set(attendance.members) == {2} and 3 not in attendance._asking
    assert said == ["left: video was revoked: the run goes on without it"]
    names[3] = "video"
    attendance.look()
    assert 3 in attendance._asking


def test_who_is_missing_is_named() -> None:
    attendance = attending([2], names=lambda: {2: "shop", 3: "video", 4: "news"})
    with pytest.raises(FedfuseError) as caught:
        attendance.wait_for(3, seconds=0.0)
    assert caught.value.where == "here: shop; missing: news, video"


def test_those_named_alone_are_waited_for() -> None:
    said: list[str] = []
    names = {2: "shop", 3: "video", 4: "news", 5: "series"}
    attendance = attending(
        [2, 5],
        [2, 5],
        [2, 4, 5],
        say=lambda kind, text, **_: said.append(text),
        names=lambda: names,
        only=("shop", "news"),
    )
    assert attendance.awaited == {"shop", "news"}
    assert attendance.wait_for(2, seconds=60.0) == [2, 4]
    assert said == ["1 of 2 platforms are there (here: shop; missing: news)"]


def test_nodes_are_called_by_the_names_that_they_were_approved_under() -> None:
    said: list[str] = []

    def say(kind: Kind, text: str, **_: Any) -> None:
        said.append(text)

    attendance = attending([2, 3], say=say, names=lambda: {2: "shop"})
    attendance._ask = unheard  # type: ignore[method-assign]
    with pytest.raises(FedfuseError, match="no platform joined"):
        attendance.join([2, 3])
    assert said == ["shop: no answer: left out", "node 3: no answer: left out"]


def test_it_says_at_once_that_nobody_is_there_and_then_what_changes(waiting: Any, told: list[str]) -> None:
    assert waiting([], [], [3], [3], [3, 2], wanted=2) == [2, 3]
    assert told == ["0 of 2 platforms are there", "1 of 2 platforms are there"]


def test_who_is_there_at_once_is_not_waited_for(waiting: Any, told: list[str]) -> None:
    assert waiting([7, 4, 5], wanted=2) == [4, 5, 7]
    assert told == []


def test_without_a_number_it_waits_until_nobody_else_comes(waiting: Any, told: list[str]) -> None:
    assert waiting([], [], [3], [4, 3], [4, 3], [5, 4, 3], wanted=None) == [3, 4]
    assert told == ["0 platforms are there", "1 platforms are there", "2 platforms are there"]


@pytest.mark.parametrize(("wanted", "words"), [(2, "1 of 2"), (None, "1 of any number of")])
def test_it_does_not_wait_for_ever(waiting: Any, wanted: int | None, words: str) -> None:
    with pytest.raises(FedfuseError, match=f"{words} platforms came within 0 s"):
        waiting([3], wanted=wanted, seconds=0.0)


def test_who_is_asked_to_join_is_shown_its_last_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining may be charged (the popularity prior), so the very first request must show whether the ledger went back."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    sent: list[Message] = []

    def exchange(grid: Any, messages: list[Message], *, timeout: float) -> Any:
        sent.extend(messages)
        return unheard([])

    monkeypatch.setattr(attendance_module, "Exchange", exchange)
    door: Any = Door([2, 3, 4])
    attendance = Attendance(
        grid=door,
        settings=Settings(),
        run="run",
        least=1,
        say=lambda *_, **__: None,
        entered=lambda *_: None,
        names=lambda: {2: "shop", 3: "video"},
        receipt={"shop": "the receipt of shop", "video": ""}.__getitem__,
    )
    attendance._ask([2, 3, 4])
    assert [receipt_in(message.content) for message in sent] == ["the receipt of shop", "", ""]
    assert all(request_from(message.content) == request_from(sent[0].content) for message in sent)
