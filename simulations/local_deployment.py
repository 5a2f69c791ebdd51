"""A deployment on this machine, for measurements: the coordinator and its platforms as processes, through the command line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.base.errors import FedfuseError
from shared.base.logs import log_environment

ROOT = Path(__file__).resolve().parents[1]


class LocalDeployment:
    """A coordinator in `root`, and platforms beside it; use it as a context manager, which ends what was started.

    Args:
        root: A new folder.
        patience: Seconds that a state is waited for.
    """

    def __init__(self, root: Path, *, patience: float = 300.0) -> None:
        self.root, self.patience = root, patience
        self.coordinator = root / "coordinator"
        self.port, self.control = free_ports(2)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            **log_environment("json"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def command(self, *words: str | Path) -> str:
        """Run a command of Fedfuse to its end; what it printed.

        Raises:
            FedfuseError: it failed.
        """
        return run_words([sys.executable, "-m", "fedfuse", *map(str, words)], cwd=self.root, env=self.environment)

    def start(self, key: str, words: Sequence[str | Path], **over: str) -> None:
        """Start a process that stays; its log is KEY.log."""
        with (self.root / f"{key}.log").open("ab") as log:
            self.processes[key] = subprocess.Popen(  # noqa: S603 - our own commands
                list(map(str, words)),
                cwd=self.root,
                env={**self.environment, **over},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def make(self) -> None:
        """Make the coordinator, and start its server."""
        self.command(
            "init",
            "server",
            self.coordinator,
            "--host",
            "127.0.0.1",
            "--name",
            "local",
            "--port",
            str(self.port),
            "--control-port",
            str(self.control),
            "--listen",
            "127.0.0.1",
        )
        self.start("server", [sys.executable, "-m", "fedfuse", "server", "start", self.coordinator])
        self.wait(lambda: connects(self.control), "the server answers")

    def invite(self, name: str) -> Path:
        """The file of an invitation."""
        path = self.root / f"{name}.invitation"
        path.write_text(self.command("invite", name, "--server", self.coordinator), encoding="utf-8")
        return path

    def add(self, name: str, *sources: str | Path, users: int, epsilon: float = 8.0) -> Path:
        """Make a platform and approve it; its folder."""
        folder = self.root / name
        self.command(
            "init",
            "client",
            folder,
            "--invitation",
            self.invite(name),
            "--users",
            str(users),
            "--epsilon",
            f"{epsilon:g}",
            *sources,
        )
        self.command("approve", name, folder / "application.toml", "--server", self.coordinator)
        return folder

    def join(self, name: str) -> None:
        """Start a platform's client."""
        self.start(name, [sys.executable, "-m", "fedfuse", "client", "start", self.root / name])

    def wait(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds.

        Raises:
            FedfuseError: it took too long, or a process has ended.
        """
        end = time.monotonic() + self.patience
        while not holds():
            ended = [key for key, process in self.processes.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                said = [(self.root / f"{key}.log").read_text(encoding="utf-8", errors="replace")[-1000:] for key in ended[:1]]
                raise FedfuseError(
                    f"not within {self.patience:g} s: {what}" if not ended else f"{', '.join(ended)} ended\n{said[0]}",
                    where=str(self.root),
                    do="see the logs there",
                )
            time.sleep(0.2)

    def events(self, run_words: str) -> list[dict[str, Any]]:
        """What a run's journal says."""
        path = self.coordinator / "runs" / run_words / "events.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in self.processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)


def run_words(words: Sequence[str], *, cwd: Path, env: dict[str, str]) -> str:
    """Run a command to its end; what it printed.

    Raises:
        FedfuseError: it failed.
    """
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    if done.returncode:
        raise FedfuseError(
            f"{' '.join(words[:6])}: {done.returncode}\n{done.stderr[-2000:]}", where=str(cwd), do="see what it says"
        )
    return done.stdout


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def connects(port: int) -> bool:
    """Whether somebody listens at that port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
