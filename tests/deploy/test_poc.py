"""`fedfuse poc` with real processes: killed half-way, started anew, left running, stopped, started again.

What starts a federation is a process of its own; what only looks at it or stops it is called in this one.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shared.base.errors import ExitCode
from shared.ledger.audit import audit_run
from simulations.local_deployment import QUIET, ROOT, fedfuse_words
from simulations.poc.first_federation import PLATFORMS, RUN
from simulations.poc.processes import processes_in, stop_processes
from tests.support.called_command import called


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stop_processes(tmp_path / "poc")


def poc(place: Path) -> subprocess.CompletedProcess[str]:
    """`fedfuse poc` as a process, in an empty place."""
    return subprocess.run(
        fedfuse_words("poc"), cwd=place, env=environment(), capture_output=True, text=True, timeout=1200.0, check=False
    )


def environment() -> dict[str, str]:
    return {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}


def helpers_in(root: Path) -> set[int]:
    """Processes of `flower-superexec`, and of the launcher that replaces it."""
    children = [child for one in processes_in(root) for child in psutil.Process(one.pid).children()]
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    names = {child.pid: {Path(word).name for word in child.cmdline()[:3]} for child in alive}
    return {pid for pid, found in names.items() if found & {"flower-superexec", "fork_launcher.py"}}


@pytest.mark.deploy
@pytest.mark.timeout(2400)
def test_a_federation_in_one_command(place: Path) -> None:
    root = place / "poc"
    at = ("--dir", root)
    assert "fedfuse poc" in called("poc", "stop", *at).stderr and not root.exists()

    # Killed when the coordinator's server is up and the first platform is being made.
    first = subprocess.Popen(fedfuse_words("poc"), cwd=place, env=environment(), stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    said = []
    for line in first.stdout:
        said.append(line)
        if "shop-01 is invited" in line:
            break
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert said and "shop-01 is invited" in said[-1], said
    assert processes_in(root)[0].part == "server"
    shown = json.loads(called("poc", "status", "--json", *at).stdout)
    assert shown["state"] == "an earlier start was killed half-way"

    done = poc(place)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "killed half-way" in done.stdout and f"evaluate poc/{PLATFORMS[0]} --model poc/model" in done.stdout
    shown = json.loads(called("poc", "status", "--json", *at).stdout)
    assert shown["state"] == "runs" and shown["platforms"] == dict.fromkeys(PLATFORMS, "online")
    state = json.loads((root / "coordinator" / "runs" / RUN / "state.json").read_text())
    assert state["state"] == "finished" and set(state["platforms"]) == set(PLATFORMS)
    assert all(audit_run(root / name / "worker").ok for name in PLATFORMS)
    assert (root / "model" / "preferences.safetensors").exists()
    keys = [*root.rglob("*.key")]
    assert len(keys) == 5 + 2 * len(PLATFORMS) and {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}

    for folder in ("coordinator", PLATFORMS[0]):
        looked = called("doctor", root / folder, "--json")
        assert looked.returncode == 0 and json.loads(looked.stdout)["ok"], looked.stdout
    assert "holds for 36" in looked.stdout and "the coordinator's certificate" in looked.stdout

    # Flower's own helpers, one of the server and one of each SuperNode, start what works on runs and messages.
    helpers = helpers_in(root)
    assert len(helpers) > len(PLATFORMS)
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    asked = called("run", "--server", root / "coordinator", "--dry-run", "--json")
    assert asked.returncode == 0 and len(json.loads(asked.stdout)["platforms"]) == len(PLATFORMS), asked.stderr
    assert not helpers_in(root) & helpers
    logs = [root / "server.log", *(root / name / "log" / "messenger.log" for name in PLATFORMS)]
    assert all("ended (signal 9): it is started again" in log.read_text() for log in logs)

    second = called("poc", *at)
    assert second.returncode == ExitCode.BAD_INPUT and "it runs already" in second.stderr
    stopped = called("poc", "stop", *at)
    assert stopped.returncode == 0 and processes_in(root) == []
    assert called("poc", "status", *at).returncode == ExitCode.FAILED

    # Again: the same federation, and nothing is spent a second time.
    before = [(root / name / "worker" / "ledger" / f"{name}.jsonl").read_bytes() for name in PLATFORMS]
    again = poc(place)
    assert again.returncode == 0, f"{again.stdout}\n{again.stderr}"
    assert before == [(root / name / "worker" / "ledger" / f"{name}.jsonl").read_bytes() for name in PLATFORMS]
    assert sys.executable in again.stdout  # how it was called is how it can be pasted
    assert called("poc", "stop", *at).returncode == 0 and processes_in(root) == []
