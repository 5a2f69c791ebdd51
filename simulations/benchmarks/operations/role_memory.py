"""What each role of a small deployment takes of memory, for whoever has to ask a machine or a cluster for it.

    python -m simulations.benchmarks.operations.role_memory [--users 400] [--rounds 3]

A coordinator and three invented shops run as processes on this machine, over TLS: a federation of preferences, then one of
adapters with the default backbone, both under the secure sum. Every half a second the proportional set sizes (PSS: pages that
processes share are divided among them) of all processes of a role are added up; the largest sum is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulations.benchmarks.operations.resident_memory import child_processes
from simulations.local_deployment import LocalDeployment
from simulations.worlds.large import LargeSizes, write_large_world

_EVERY = 0.5
"""Seconds between two looks."""
WORKER, MESSENGER = "client worker", "client.supernode.process"
"""Words in the command line of a platform's two processes."""


def proportional_mib(pid: int) -> float:
    """PSS of a process and all below it, MiB; 0 where it is gone."""
    below = sum(map(proportional_mib, child_processes(pid)))
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return below
    return below + next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def roles_of(processes: Mapping[str, int]) -> dict[str, list[int]]:
    """First process of each role: `coordinator`, and `worker` and `messenger` of every platform.

    Args:
        processes: What was started: 'server', and each platform's client -> its process.
    """
    found: dict[str, list[int]] = {"coordinator": [processes["server"]], "worker": [], "messenger": []}
    for key, pid in processes.items():
        if key != "server":
            for child in child_processes(pid):
                words = _command(child)
                role = "worker" if WORKER in words else "messenger" if MESSENGER in words else ""
                if role:
                    found[role].append(child)
    return found


def measure_roles(root: Path, *, users: int, rounds: int) -> dict[str, Any]:
    """Peak MiB of each role after preferences and after adapters; the largest platform counts."""
    sizes = LargeSizes(users=users, items=300, events=8 * users, platforms=3, in_common=0.8)
    world, names = write_large_world(root / "world", sizes, seed=0, kind="csv"), sizes.named()
    with LocalDeployment(root) as local, _Peaks() as peaks:
        local.make()
        local.serve()
        for name in names:
            local.add(name, "--data", world.folder / name, users=users)
        for name in names:
            local.trust(name, names)
            local.join(name)
        local.await_online(*names)
        peaks.watch({key: process.pid for key, process in local.processes.items()})
        words = ["--server", str(local.coordinator), "--platforms", "3", "--set", "server.minimum_platforms=3"]
        found: dict[str, Any] = {"users": users, "rounds": rounds}
        local.command("run", *words)
        found["preferences"] = peaks.now()
        local.command("run", *words, "--rounds", str(rounds), "--strategy", "secure-sum", "--set", "privacy.share=1.0")
        found["adapters"] = peaks.now()
    return found


class _Peaks:
    """Looks at the roles until it is left."""

    def __init__(self) -> None:
        self._peaks: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, processes: Mapping[str, int]) -> None:
        """Begin to look."""

        def look() -> None:
            while not self._stop.wait(_EVERY):
                for role, pids in roles_of(processes).items():
                    self._peaks[role] = max([self._peaks.get(role, 0.0), *map(proportional_mib, pids)])

        self._thread = threading.Thread(target=look, daemon=True)
        self._thread.start()

    def now(self) -> dict[str, int]:
        """Peaks until now, MiB."""
        return {role: round(value) for role, value in sorted(self._peaks.items())}

    def __enter__(self) -> _Peaks:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def main(words: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="fedfuse-roles-") as folder:
        print(json.dumps(measure_roles(Path(folder), users=asked.users, rounds=asked.rounds), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
