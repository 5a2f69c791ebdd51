"""A federation's processes are found by what they are, and nothing else is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulations.poc.processes import MARK, processes_in, stop_processes

SLEEP = "import time; print('up', flush=True); time.sleep(300)"
Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    made = []

    def start(*words: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, *words], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
        made.append(process)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_what_is_of_the_folder_is_found_and_ended_and_nothing_else(tmp_path: Path, spawn: Spawn) -> None:
    root, script = tmp_path / "poc", tmp_path / "fedfuse"
    for folder in (root / "shop-01", tmp_path / "poc-2"):
        folder.mkdir(parents=True)
    script.write_text(SLEEP)
    ours = {
        spawn(str(script), "client", "start", str(root / "shop-01")).pid: ("client", "shop-01"),
        spawn(str(script), "client", "worker", str(root / "shop-01"), "--socket", "x").pid: ("worker", "shop-01"),
        spawn(str(script), "run", "--server", "anywhere", **{MARK: str(root)}).pid: ("run", ""),
        spawn("-c", SLEEP, FLWR_HOME=str(root / "shop-01" / "node" / "flwr")).pid: (Path(sys.executable).name, "shop-01"),
    }
    others = [
        spawn(str(script), "client", "start", str(tmp_path / "poc-2")),
        spawn(str(script), "evaluate", str(root / "shop-01")),
        spawn("-c", SLEEP, str(root / "shop-01" / "platform.toml"), **{MARK: str(tmp_path / "poc-2")}),
    ]
    assert {one.pid: (one.part, one.place) for one in processes_in(root)} == ours
    assert stop_processes(root) == len(ours) and processes_in(root) == []
    time.sleep(0.1)
    assert all(process.poll() is None for process in others)


def test_a_folder_named_from_where_the_process_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn) -> None:
    (tmp_path / "fedfuse").write_text(SLEEP)
    monkeypatch.chdir(tmp_path)
    process = spawn("fedfuse", "client", "start", "poc/../poc/shop-01")
    assert [(one.pid, one.place) for one in processes_in(tmp_path / "poc")] == [(process.pid, "shop-01")]


def test_what_does_not_listen_is_killed(tmp_path: Path, spawn: Spawn) -> None:
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
    process = spawn("-c", deaf, **{MARK: str(tmp_path)})
    assert stop_processes(tmp_path, grace=0.3) == 1
    assert process.wait(10) == -9
