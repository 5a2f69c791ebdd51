"""What the benchmarks of deployments make of the logs that they read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks import crowd, phase_cost
from simulations.benchmarks.operations import role_memory
from simulations.benchmarks.operations.resident_memory import resident


def event(kind: str, round_: int, time: float) -> dict[str, Any]:
    return {"kind": kind, "round": round_, "time": time}


def test_a_phase_is_cut_where_the_logs_say() -> None:
    events = [
        event("answered", 1, 9.0), event("round", 1, 10.0), event("answered", 2, 13.0), event("answered", 2, 15.5),
        event("round", 2, 16.0), event("answered", 2, 20.0), event("evaluated", 2, 21.0),
    ]  # fmt: skip
    (found,) = phase_cost.phases(events, [{2: (11.0, 12.5)}, {2: (11.5, 14.5)}])
    assert found == {
        "out": 1.5, "computing": 3.0, "back": 1.0, "closing": 0.5, "wall": 6.0, "longest": 3.0, "beyond": 3.0
    }  # fmt: skip
    assert found["wall"] == sum(found[key] for key in phase_cost.COLUMNS)


def test_a_workers_log_says_when_it_computed(tmp_path: Path) -> None:
    lines = [
        "not json",
        json.dumps({"event": "answered", "round": 0, "ts": "2030-01-01T00:00:01Z", "message": "answered 'evaluate' in 9.0 s"}),
        json.dumps({"event": "answered", "round": 3, "ts": "2030-01-01T00:00:10Z", "message": "answered 'train' in 2.5 s"}),
    ]
    (tmp_path / "worker.log").write_text("\n".join(lines))
    ((round_, (begin, end)),) = phase_cost.worked(tmp_path / "worker.log").items()
    assert round_ == 3 and end - begin == pytest.approx(2.5)


@pytest.mark.parametrize(("lost", "slope", "growth"), [(False, 0.0, 1.0), (True, 10.0, 1.5)])
def test_lost_answers_and_growing_memory_are_seen(lost: bool, slope: float, growth: float) -> None:
    events, memory = [], []
    for round_ in range(1, 9):
        events += [event("answered", round_, round_ - 0.5) for _ in range(3 - (lost and round_ == 4))]
        events.append(event("round", round_, float(round_)))
        memory.append({"round": float(round_), "superlink": 45.0 + slope * round_, "serverapp": 100.0})
    found = crowd.crowd_summary(events, memory, platforms=3, rounds=8, seconds=9.0)
    assert found["whole_rounds"] == 8 - lost and found["seconds_a_round"] == 1.0
    assert found["growth"] == {"superlink": pytest.approx(growth, abs=0.005), "serverapp": 1.0}


def test_the_steps_of_a_sum_are_read_off_its_events() -> None:
    events = [
        {**event("joined", 0, 102.0), "platform": "a"},
        {**event("joined", 0, 103.5), "platform": "b"},
        event("secured", 0, 110.0),
        {**event("silent", 0, 120.0), "platform": "b"},
        event("preferred", 0, 130.0),
        event("published", 0, 131.0),
    ]
    found = crowd.sum_summary(events, began=100.0)
    assert found["until"] == {"joined": 3.5, "secured": 10.0, "preferred": 30.0, "published": 31.0}
    assert found["joined"] == 2 and found["lost"] == ["b"]


def test_resident_memory_is_that_of_the_process() -> None:
    import psutil

    assert resident(os.getpid())["superlink"] == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.1)


def test_memory_is_added_up_over_all_that_a_process_started() -> None:
    import psutil

    alone = role_memory.proportional_mib(os.getpid())
    assert 0 < alone <= 1.1 * psutil.Process().memory_info().rss / 2**20
    child = [sys.executable, "-c", "x = bytearray(64 << 20)\nprint('made', flush=True)\ninput()", role_memory.MESSENGER]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"made\n"
        assert role_memory.proportional_mib(os.getpid()) > alone + 60
        roles = role_memory.roles_of({"server": 1, "shop": os.getpid()})
        assert roles == {"coordinator": [1], "worker": [], "messenger": [process.pid]}
        process.communicate(b"\n")
    assert role_memory.proportional_mib(process.pid) == 0.0
