"""A helper process that ends is started again, until it is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from shared.flower.kept_process import Keeping, KeptProcess
from tests.support.waiting import until

FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]
SOON = 0.01


def alive(process: KeptProcess) -> bool:
    return process.poll() is None


def test_one_that_is_killed_is_started_again_each_time() -> None:
    told: list[str] = []
    process = KeptProcess(lambda: subprocess.Popen(FOREVER), ended=told.append, again=SOON)
    pids = [process.pid]
    for _ in range(3):
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: process.pid != pids[-1])
        pids.append(process.pid)
    assert alive(process) and len(set(pids)) == 4 and told == ["signal 9"] * 3
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_one_that_ends_by_itself_is_started_again() -> None:
    told: list[str] = []
    process = KeptProcess(lambda: subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]), ended=told.append, again=SOON)
    until(lambda: len(told) >= 2)
    process.terminate()
    assert set(told) == {"code 3"}


def test_one_that_is_told_to_end_stays_ended() -> None:
    told: list[str] = []
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(FOREVER))
        return started[-1]

    process = KeptProcess(start, ended=told.append, again=SOON)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    assert alive(process)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    time.sleep(20 * SOON)
    assert (len(started), told) == (1, [])


def test_one_that_is_told_to_end_before_it_is_started_again_is_not() -> None:
    started: list[subprocess.Popen[bytes]] = []
    told: list[str] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", ""]))
        return started[-1]

    process = KeptProcess(start, ended=told.append, again=0.5)
    until(lambda: bool(told))
    process.terminate()
    time.sleep(1.0)
    assert len(started) == 1


def test_where_it_cannot_be_started_again_it_is_tried_again() -> None:
    """Without memory for a new process, say; at first the error is the caller's."""
    told: list[str] = []
    outcomes = [None, OSError(12, "no memory"), OSError(12, "no memory"), None]

    def start() -> subprocess.Popen[bytes]:
        if error := outcomes.pop(0):
            raise error
        return subprocess.Popen(FOREVER)

    process = KeptProcess(start, ended=told.append, again=SOON)
    first = process.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: process.pid != first)
    assert alive(process) and told == ["signal 9", *["it cannot be started: no memory"] * 2]
    process.terminate()
    process.wait(30)
    with pytest.raises(FileNotFoundError):
        KeptProcess(lambda: subprocess.Popen(["/nowhere/flower-superexec"]), ended=told.append)


def test_in_the_place_of_a_module_words_and_options_are_passed_on() -> None:
    read, write = os.pipe()
    module = Keeping(lambda how: None)
    assert module.PIPE is subprocess.PIPE and module.TimeoutExpired is subprocess.TimeoutExpired
    process = module.Popen(
        [sys.executable, "-c", f"import os, time; os.write({write}, b'here'); time.sleep(600)"], pass_fds=(write,)
    )
    assert os.read(read, 4) == b"here"
    os.kill(process.pid, signal.SIGKILL)
    assert os.read(read, 4) == b"here"  # started again, with the same
    process.terminate()
    process.wait(30)
    os.close(read), os.close(write)
