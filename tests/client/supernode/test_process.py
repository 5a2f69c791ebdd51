"""The messenger's start: how often it looks for work, and what of the environment it gets."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from client.supernode import process as node
from client.supernode.process import IDLE, LONG, PATIENT, Clock, Messenger, supernode_environment


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(node.time, "sleep", seconds.append)
    return seconds


def test_it_looks_often_while_there_is_work_and_seldom_after_long_quiet(slept: list[float]) -> None:
    clock = Clock(0.5)
    for _ in range(2 + int(LONG / 0.5)):
        clock.sleep(3)
    assert slept[0] == 0.5 and slept[-1] == PATIENT
    clock.sleep(0.2)  # Flower waits for its ClientApp
    clock.sleep(3)
    assert slept[-2:] == [0.2, 0.5]
    assert clock.monotonic() > 0  # all else is the real module's


@pytest.mark.parametrize(
    ("pace", "idle"), [(0.0, IDLE), (-5.0, IDLE), (1.7, 1.7), (1e9, PATIENT), (math.inf, PATIENT), (math.nan, PATIENT)]
)
def test_the_coordinator_may_slow_it_down_but_never_below_flowers_own_pace(pace: float, idle: float) -> None:
    messenger = Messenger(folder="/f", address="h:1", socket="/s", authority="/a", key="/k")
    assert messenger.paced(pace).idle == idle


def test_it_gets_nothing_that_it_was_not_meant_to_have() -> None:
    given = {"PATH": "/usr/bin", "SHOP_PASSWORD": "s", "PGPASSWORD": "p", "LANG": "C", "FEDFUSE_LOG_FORMAT": "json"}
    found = supernode_environment(Path("/node"), given=given)
    assert not {"SHOP_PASSWORD", "PGPASSWORD"} & set(found)
    assert found["HOME"] == "/node" and found["LANG"] == "C" and found["FEDFUSE_LOG_FORMAT"] == "json"


def test_it_ends_with_any_of_its_threads_though_nothing_can_be_written() -> None:
    """A full disk ended the heartbeat's thread alone: the SuperNode was offline for good, and nobody started it again."""
    text = """
import sys, threading, time
from client.supernode.process import end_with_a_thread

end_with_a_thread()
threading.Thread(target=sys.exit).start()  # leaving is no death
time.sleep(0.2)
threading.Thread(target=lambda: 1 / 0, daemon=True).start()
time.sleep(60)
"""
    with Path("/dev/full").open("w") as full:
        assert subprocess.run([sys.executable, "-c", text], stderr=full, stdout=full, timeout=50, check=False).returncode == 1
