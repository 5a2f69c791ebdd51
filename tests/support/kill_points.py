"""Kills a process at every point where it touches the disk, and looks at what it leaves.

    python -m tests.support.kill_points FOLDER NAME:EVERY:TORN:RANDOM ... [--backbone FOLDER]

A scenario *prepares* a folder, *acts* on it (saying after each step that the step's result has left the process), and
*checks* what a restarted process finds. The act runs in a fork that is killed

- at a point: right before, or right after, the n-th call by which its Python code may change a file, for every EVERYth n;
- torn: in each write of bytes, of which only a part arrives, TORN different parts;
- random: by SIGKILL from outside, after RANDOM different times by chance.

The check runs in this process, which only looked on. It prints the numbers of deaths, and fails on the first bad one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

CALLS = {"write", "writelines", "flush", "fsync", "fdatasync", "sendfile", "truncate", "ftruncate", "flock", "__exit__"}
CALLS |= {"rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "chmod", "fchmod", "open", "close"}
"""C functions at which a file may change; every one of them is a point."""
Said = Callable[[int], None]


class Scenario(Protocol):
    """What is killed."""

    def prepare(self, folder: Path) -> None:
        """Make what is there before."""

    def act(self, folder: Path, said: Said) -> None:
        """Do the steps 1, 2, ...; `said(n)` once the result of step n may have left."""

    def check(self, folder: Path, steps: int, *, died: bool) -> None:
        """Fail unless a restarted process finds what it must, given that step `steps` is known to have left."""


class Killer:
    """Ends its process at the n-th point. Counts them if n is 0."""

    def __init__(self, at: int) -> None:
        self.at, self.points = at, 0

    def __call__(self, frame: FrameType, event: str, function: Any) -> None:
        if event in ("c_call", "c_return") and getattr(function, "__name__", "") in CALLS:
            self.points += 1
            if self.points == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def tear(at: int, part: float) -> None:
    """Let the n-th `os.write` write a part of its bytes, and die."""
    real, count = os.write, 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal count
        count += 1
        if count == at:
            real(descriptor, bytes(data)[: int(len(data) * part)])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor, data)

    os.write = write


def die(scenario: Scenario, folder: Path, *, point: int = 0, torn: tuple[int, float] | None = None, after: float = 0.0) -> bool:
    """One life. Returns whether it was killed; whatever it leaves was checked."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scenario.prepare(folder)
    receiver, sender = os.pipe()
    real_write = os.write
    child = os.fork()
    if child == 0:
        os.close(receiver)

        def said(step: int) -> None:
            real_write(sender, bytes([step]))

        code = 1
        try:
            killer = Killer(point)
            if torn is not None:
                tear(*torn)
            sys.setprofile(killer)
            scenario.act(folder, said)
            sys.setprofile(None)
            code = 0
        finally:
            os._exit(code)
    os.close(sender)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    heard = b""
    while part := os.read(receiver, 4096):
        heard += part
    os.close(receiver)
    _, status = os.waitpid(child, 0)
    died = os.WIFSIGNALED(status)
    if not died and os.waitstatus_to_exitcode(status):
        raise AssertionError("the act failed without being killed")
    scenario.check(folder, heard[-1] if heard else 0, died=died)
    return died


def points_of(scenario: Scenario, folder: Path) -> tuple[int, int, float]:
    """Points and `os.write` calls of a life that nobody ends, and its seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scenario.prepare(folder)
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        code, writes, real = 1, 0, os.write

        def write(descriptor: int, data: Any) -> int:
            nonlocal writes
            writes += 1
            return real(descriptor, data)

        try:
            os.write = write
            killer, began = Killer(0), time.monotonic()
            sys.setprofile(killer)
            scenario.act(folder, lambda step: None)
            sys.setprofile(None)
            real(sender, f"{killer.points} {writes} {time.monotonic() - began}".encode())
            code = 0
        finally:
            os._exit(code)
    os.close(sender)
    told = os.read(receiver, 200).decode().split()
    os.close(receiver)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the act fails without being killed"
    return int(told[0]), int(told[1]), float(told[2])


def run(scenario: Scenario, folder: Path, *, every: int, torn: int, chances: int, seed: int = 0) -> dict[str, int]:
    """All lives; the number of deaths of each kind."""
    _warm(scenario, folder / "warm")
    points, writes, seconds = points_of(scenario, folder / "count")
    deaths = {"points": points, "point": 0, "torn": 0, "random": 0}
    if every:
        for point in range(1, points + 1, every):
            deaths["point"] += _one(scenario, folder / "life", f"point {point}", point=point)
    for number in range(1, writes + 1 if torn else 0):
        for step in range(torn):
            deaths["torn"] += _one(scenario, folder / "life", f"write {number}, part {step}", torn=(number, step / torn))
    chance = random.Random(seed)
    for number in range(chances):
        deaths["random"] += _one(scenario, folder / "life", f"chance {number}", after=chance.uniform(0, seconds * 1.2))
    return deaths


def _warm(scenario: Scenario, folder: Path) -> None:
    """One life in this process, so that no import is left for those that follow."""
    folder.mkdir(parents=True)
    scenario.prepare(folder)
    said = [0]
    scenario.act(folder, said.append)
    scenario.check(folder, said[-1], died=False)


def _one(scenario: Scenario, folder: Path, what: str, **how: Any) -> bool:
    try:
        return die(scenario, folder, **how)
    except BaseException:
        print(f"FAILED at {what}", flush=True)
        raise


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("scenarios", nargs="+", metavar="NAME:EVERY:TORN:RANDOM")
    parser.add_argument("--backbone", default="")
    chosen = parser.parse_args()
    # Who dies cleans nothing up: what it had in hand goes with the folder.
    tempfile.tempdir = str(chosen.folder / "temporary")
    Path(tempfile.tempdir).mkdir(parents=True)
    from tests.support.kill_scenarios import scenario_named

    for words in chosen.scenarios:
        name, every, torn, chances = words.split(":")
        scenario = scenario_named(name, chosen.backbone)
        deaths = run(scenario, chosen.folder / name, every=int(every), torn=int(torn), chances=int(chances))
        print(json.dumps({"scenario": name, **deaths}), flush=True)


if __name__ == "__main__":
    main()
