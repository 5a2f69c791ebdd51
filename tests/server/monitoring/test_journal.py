"""What operators read of a run while it goes on."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.monitoring.journal import EVENTS, Journal, read_events, read_state
from server.monitoring.run_events import Event, Kind, Tally
from shared.protocol.messages import Joined

JOINED = Joined(
    run="r",
    platform="shop",
    users=40,
    items=12,
    budget=math.inf,
    delta=1e-5,
    planned_epsilon=7.0,
    noise_multiplier=1.25,
    signal_to_noise=2.0,
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(folder=tmp_path, run="r", rounds=3)


def state_of(journal: Journal) -> dict[str, Any]:
    state = read_state(journal.folder)
    assert state is not None
    return state


def test_the_state_follows_the_events(journal: Journal) -> None:
    before = time.time()
    for kind in (Kind.JOINED, Kind.SILENT):
        journal(Event(kind=kind, round=0, text=f"shop: {kind}" * 99, platform="shop"))
    assert (state_of(journal)["round"], state_of(journal)["code"], state_of(journal)["why"]) == (0, 0, "")
    tallies = {"shop": Tally(joined=JOINED, rounds=2, epsilon=math.inf)}
    for kind, round_, shown in ((Kind.ROUND, 2, 2), (Kind.LATE, 9, 2), (Kind.EVALUATED, 3, 3), (Kind.RESUMED, 1, 1)):
        journal(Event(kind=kind, round=round_, text="x", tallies=tallies if kind is Kind.ROUND else {}))
        assert state_of(journal)["round"] == shown
    state = state_of(journal)
    line = state["platforms"].pop("shop")
    assert (state["run"], state["state"], state["rounds"], state["process"]) == ("r", "running", 3, os.getpid())
    assert state["platforms"] == {}  # what concerns all is no platform's
    assert before <= line.pop("when") <= state["time"] <= time.time()
    assert line.pop("trouble") == ("shop: silent" * 99)[:300]
    assert line == {"joined": True, "users": 40, "rounds": 2, "epsilon": "inf", "budget": "inf", "delta": 1e-5}
    journal(Event(kind=Kind.LEFT, round=3, text="shop left", platform="shop"))
    line = state_of(journal)["platforms"]["shop"]
    assert (line["joined"], line["trouble"]) == (False, "shop left")
    journal.say("failed", why="nobody is left", code=4)
    state = state_of(journal)
    assert (state["state"], state["why"], state["code"]) == ("failed", "nobody is left", 4)


def test_not_any_number_of_names_is_noted_but_everyone_who_joined(journal: Journal) -> None:
    """A node may give any name before it joins."""
    for number in range(1200):
        journal(replace(Event(kind=Kind.ANSWERED, round=0, text="x"), platform=f"p{number}"))
    journal.say("running")
    assert 1000 <= len(state_of(journal)["platforms"]) < 1100
    journal(Event(kind=Kind.JOINED, round=0, text="late joined", platform="late"))
    journal(Event(kind=Kind.REFUSED, round=0, text="p3: no", platform="p3"))
    journal(Event(kind=Kind.REFUSED, round=0, text="p1199: no", platform="p1199"))
    platforms = state_of(journal)["platforms"]
    assert platforms["late"]["joined"] and platforms["p3"]["trouble"] == "p3: no" and "p1199" not in platforms


def test_only_what_changes_the_state_writes_it(journal: Journal) -> None:
    journal(Event(kind=Kind.ANSWERED, round=1, text="shop answered", platform="shop"))
    assert read_state(journal.folder) is None
    journal(Event(kind=Kind.ROUND, round=1, text="round 1 of 3"))
    assert state_of(journal)["round"] == 1
    (_, answered), (end, done) = read_events(journal.folder)
    assert abs(answered.pop("time") - time.time()) < 60 and "platform" not in done
    assert answered == {"kind": "answered", "round": 1, "text": "shop answered", "platform": "shop"}
    assert end == (journal.folder / EVENTS).stat().st_size and list(read_events(journal.folder, after=end)) == []


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '"x"'])
def test_a_state_that_cannot_be_read_is_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "state.json").write_text(content)
    assert read_state(tmp_path) is None
    assert list(read_events(tmp_path)) == []


def test_a_line_that_is_torn_for_good_is_passed_over(tmp_path: Path) -> None:
    whole = json.dumps({"kind": "a"}).encode() + b"\n"
    (tmp_path / EVENTS).write_bytes(b'{"ki\n' + whole)
    assert [(at, event["kind"]) for at, event in read_events(tmp_path)] == [(5 + len(whole), "a")]
