"""A federation on this machine: a coordinator and its platforms as processes, made and started through the command line.

`fedfuse poc`, the measurements and the tests of deployments all start theirs here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from server.deployment.flower_control import Control, Unreachable
from server.deployment.folder import open_coordinator
from server.deployment.status import status_of
from server.monitoring.journal import read_events
from shared.base.errors import FedfuseError

ROOT = Path(__file__).resolve().parents[1]
QUIET: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""Many processes share one machine, and none of them asks anything of the outside."""
_REMIND = 5.0
"""Seconds after which a wait is mentioned once more."""


class LocalDeployment:
    """A coordinator in `root`, and platforms beside it; as a context manager it ends what was started.

    Args:
        root: Their folder.
        name: Of the federation.
        patience: Seconds that a state is waited for.
        environment: Of the processes, besides this one's.
        invoke: Runs a command to its end and returns what it printed; a process of its own for each if None.
        tell: Called with what is waited for where that takes long.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str = "local",
        patience: float = 300.0,
        environment: Mapping[str, str] | None = None,
        invoke: Callable[[Sequence[str]], str] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.root, self.name, self.patience = root.absolute(), name, patience
        self.coordinator = self.root / "coordinator"
        self.port, self.control = free_ports(2)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.tell, self.invoke = tell, invoke
        self.environment = {
            **os.environ,
            **QUIET,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **(environment or {}),
        }

    def command(self, *words: str | Path) -> str:
        """Run a command of Fedfuse to its end; what it printed.

        Raises:
            FedfuseError: it failed.
        """
        if self.invoke is not None:
            return self.invoke(list(map(str, words)))
        return run_words(fedfuse_words(*words), cwd=self.root, env=self.environment)

    def start(self, key: str, words: Sequence[str | Path], **over: str) -> subprocess.Popen[bytes]:
        """Start a process that stays; its log is KEY.log."""
        with (self.root / f"{key}.log").open("ab") as log:
            self.processes[key] = subprocess.Popen(  # noqa: S603 - our own commands
                list(map(str, words)),
                cwd=self.root,
                env={**self.environment, **over},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[key]

    def make(self) -> None:
        """Make the coordinator, on two ports of 127.0.0.1 that are free."""
        ports = ["--port", str(self.port), "--control-port", str(self.control), "--listen", "127.0.0.1"]
        self.command("init", "server", self.coordinator, "--host", "127.0.0.1", "--name", self.name, *ports)

    def serve(self) -> None:
        """Start the coordinator's server, and wait until it answers."""
        self.start("server", fedfuse_words("server", "start", self.coordinator))
        self.wait(self.answers, "the coordinator's server answers", of=["server"])

    def answers(self) -> bool:
        """Whether the coordinator's server does."""
        # Asked in this process: a command for each look would take the machine from those who are looked at.
        try:
            with Control(open_coordinator(self.coordinator)) as control:
                control.seen()
        except Unreachable:
            return False
        return True

    def invite(self, name: str) -> Path:
        """The file of an invitation."""
        path = self.root / f"{name}.invitation"
        path.write_text(self.command("invite", name, "--server", self.coordinator), encoding="utf-8")
        return path

    def draft(self, name: str, *sources: str | Path, users: int, epsilon: float = 8.0, delta: float = 1e-5) -> Path:
        """Invite a platform and make its folder, with a drafted platform file."""
        folder = self.root / name
        numbers = ["--users", str(users), "--epsilon", f"{epsilon:g}", "--delta", f"{delta:g}"]
        self.command("init", "client", folder, "--invitation", self.invite(name), *numbers, *sources)
        return folder

    def approve(self, name: str) -> None:
        """Let a platform in. Its fingerprint needs no comparing: the file has never left this machine."""
        self.command("approve", name, self.root / name / "application.toml", "--server", self.coordinator, "--yes")

    def add(self, name: str, *sources: str | Path, users: int, epsilon: float = 8.0, delta: float = 1e-5) -> Path:
        """`draft` and `approve`."""
        folder = self.draft(name, *sources, users=users, epsilon=epsilon, delta=delta)
        self.approve(name)
        return folder

    def trust(self, name: str, others: Iterable[str]) -> None:
        """Have a platform trust the identities of others, for the secure sum."""
        files = [self.root / other / "application.toml" for other in others if other != name]
        self.command("client", "trust", self.root / name, *files, "--yes")

    def join(self, name: str, **over: str) -> subprocess.Popen[bytes]:
        """Start a platform's client."""
        return self.start(name, fedfuse_words("client", "start", self.root / name), **over)

    def await_online(self, *names: str) -> None:
        """Wait until these platforms are connected."""
        coordinator = open_coordinator(self.coordinator)

        def online() -> bool:
            return set(names) <= {one.name for one in status_of(coordinator).platforms if one.connection == "online"}

        self.wait(online, f"{', '.join(names)} online", every=0.5, of=names)

    def wait(self, holds: Callable[[], object], what: str, *, every: float = 0.2, of: Iterable[str] | None = None) -> None:
        """Wait until something holds.

        Args:
            of: Keys of processes without which it cannot; all that were started if None.

        Raises:
            FedfuseError: it took too long, or a process has ended.
        """
        needed = list(self.processes) if of is None else [key for key in of if key in self.processes]
        begin = told = time.monotonic()
        while not holds():
            now = time.monotonic()
            ended = [key for key in needed if self.processes[key].poll() is not None]
            if ended or now - begin > self.patience:
                raise FedfuseError(
                    f"{', '.join(ended)} ended, not: {what}" if ended else f"not within {self.patience:g} s: {what}",
                    where=str(self.root),
                    do="see what the log says",
                    quote=self.last_words(ended or needed),
                )
            if self.tell is not None and now - told >= _REMIND:
                told = now
                self.tell(f"waiting until: {what} ({now - begin:.0f} s)")
            time.sleep(every)

    def last_words(self, keys: Iterable[str]) -> str:
        """The end of some processes' logs."""
        paths = [path for path in (self.root / f"{key}.log" for key in keys) if path.exists()]
        return "\n".join(f"{path.name}: {path.read_text(encoding='utf-8', errors='replace')[-1000:]}" for path in paths)

    def events(self, run: str) -> list[dict[str, Any]]:
        """What a run's journal says."""
        return [event for _, event in read_events(self.coordinator / "runs" / run)]

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


def fedfuse_words(*words: str | Path) -> list[str]:
    """The command line of a command of this very Fedfuse."""
    return [sys.executable, "-m", "fedfuse", *map(str, words)]


def run_words(words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> str:
    """Run a command to its end; what it printed.

    Raises:
        FedfuseError: it failed.
    """
    done = subprocess.run(  # noqa: S603 - our own commands
        words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
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
