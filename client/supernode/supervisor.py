"""`fedfuse client start`: the worker and the messenger of a platform as two processes that are kept running.

The worker holds everything and is restarted at once when it dies, a few times; when it says that something must be mended
(its exit code), it is not. The messenger holds nothing, and is restarted as long as it takes: Flower does not take a SuperNode
back before a minute has passed, and a coordinator may be away for days. Before every start the coordinator is asked for this
platform's standing, so that a person reads why it is refused.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from client.config.deployment_folder import Deployment
from client.messenger.unix_socket import connect_to, process_of
from client.messenger.wire import WIRE, Frame, receive, send
from client.supernode.authority_update import greet_or_renew
from client.supernode.gate_client import Away, Refused
from client.supernode.process import Messenger, supernode_environment
from client.supernode.sandbox import Wall
from shared.base.errors import ExitCode, FedfuseError, InputError, ProtocolError, StorageError
from shared.base.version import VERSION
from shared.protocol.keys import load_node_key
from shared.protocol.messages import PROTOCOL

log = logging.getLogger("fedfuse.client")

WORKER_STARTS = 5
"""Deaths of the worker within `WORKER_WINDOW` after which it is given up."""
WORKER_WINDOW = 600.0
PAUSES = (1.0, 2.0, 5.0, 10.0, 15.0)
"""Seconds before the messenger is started again; the last one for ever after."""
STEADY = 60.0
"""Seconds after which a messenger that runs is thought well."""
_GRACE = 10.0
_LOG_SIZE = 1 << 24


@dataclass
class Child:
    """A process that is kept running."""

    name: str
    words: Sequence[str]
    env: dict[str, str]
    log: Path
    user: int | None = None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: list[float] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C is for us, and we tell it."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _opened(self.log) as out:
            self.process = subprocess.Popen(  # noqa: S603 - our own commands
                list(self.words),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                user=self.user,
            )
        self.started = time.monotonic()

    def stop(self, *, grace: float = _GRACE) -> None:
        """Ask it to stop, with all that it has started; after a while, make it."""
        if self.process is None:
            return
        _signal_group(self.process, signal.SIGTERM)
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            log.warning("the %s does not stop; it is killed", self.name)
        # Its children too: a process group outlives its leader.
        _signal_group(self.process, signal.SIGKILL)
        self.process.wait()

    def last_words(self, count: int = 6) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return "\n".join(lines[-count:])


@dataclass
class Supervisor:
    """Keeps a platform's two processes running until it is stopped.

    Args:
        caged: Whether Landlock shuts the messenger out of the platform's files.
        users: (worker, messenger) user ids to run them as; needs the rights of an administrator.
        tell: Told what a person should know, one line each.
    """

    deployment: Deployment
    at: Path
    caged: bool
    tell: Callable[[str], None]
    users: tuple[int | None, int | None] = (None, None)
    group: int | None = None
    metrics_port: int = 0

    def __post_init__(self) -> None:
        place, invitation = self.deployment, self.deployment.invited()
        self._invitation = invitation
        self._key = load_node_key(place.node_key)
        self._stop = threading.Event()
        self._messenger = Messenger.of(place, invitation, socket=self.at)
        worker = [sys.executable, "-m", "fedfuse", "client", "worker", str(place.folder), "--socket", str(self.at)]
        if self.users[1] is not None:
            worker += ["--messenger", str(self.users[1])]
        if self.group is not None:
            worker += ["--group", str(self.group)]
        if self.metrics_port:
            worker += ["--metrics-port", str(self.metrics_port)]
        self.worker = Child("worker", worker, _importable(dict(os.environ)), place.log / "worker.log", user=self.users[0])
        self.node = Child(
            "messenger",
            self._words(0.0),
            _importable(supernode_environment(place.node)),
            place.log / "messenger.log",
            user=self.users[1],
        )

    def run(self) -> ExitCode:
        """Start both and keep them; returns when told to stop.

        Raises:
            Refused: the coordinator refuses for good.
            FedfuseError: the worker says that something must be mended, or dies again and again.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        try:
            self._start_worker()
            self.tell(f"the worker is ready; log: {self.worker.log}")
            return self._keep()
        finally:
            self.node.stop()
            self.worker.stop()

    def _words(self, pace: float) -> list[str]:
        cage = "caged" if self.caged else "free"
        return [sys.executable, "-m", "client.supernode.process", self._messenger.paced(pace).text(), cage]

    def _told(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _keep(self) -> ExitCode:
        failures, next_try, shown, ended = 0, 0.0, "", ""
        while not self._stop.is_set():
            if not self.worker.alive:
                self._worker_died()
            if not self.node.alive and time.monotonic() >= next_try:
                if self.node.process is not None and self.node.started:
                    steady = time.monotonic() - self.node.started > STEADY
                    failures = 0 if steady else failures + 1
                    log.warning("the messenger ended:\n%s", self.node.last_words())
                    code, self.node.process = self.node.process.returncode, None
                    line = f"the messenger ended ({_how(code)}): {self.node.last_words(1)}"
                    if line != ended:
                        self.tell(f"{line}\nit is started again, as long as it takes; log: {self.node.log}")
                        shown, ended = "", line
                try:
                    self._greet()
                    self.node.start()
                    line = f"connected to {self._invitation.address}; log: {self.node.log}"
                except (Refused, Away, ProtocolError) as error:
                    if isinstance(error, Refused) and error.final:
                        raise
                    failures += 1
                    line = f"not connected: {error.found} ({error.do})"
                if line != shown:
                    self.tell(line)
                    shown = line
                next_try = time.monotonic() + PAUSES[min(failures, len(PAUSES) - 1)]
            self._stop.wait(0.2)
        self.tell("stopping")
        return ExitCode.OK

    def _greet(self) -> None:
        found = greet_or_renew(
            self._invitation.address,
            authority=self.deployment.authority,
            key=self._key,
            coordinator=self._invitation.coordinator,
        )
        if found.platform != self._invitation.platform:
            raise Refused(
                f"the coordinator knows this key as platform {found.platform!r}, not {self._invitation.platform!r}",
                where=self._invitation.address,
                do="ask the coordinator",
                final=True,
            )
        self.node.words = self._words(found.pace)

    def _start_worker(self) -> None:
        self.worker.start()
        assert self.worker.process is not None
        while not greets(self.at, process=self.worker.process.pid):
            if not self.worker.alive:
                raise self._mend()
            if self._stop.wait(0.1):
                return

    def _worker_died(self) -> None:
        assert self.worker.process is not None
        code, now = self.worker.process.returncode, time.monotonic()
        if code in (ExitCode.BAD_INPUT, ExitCode.PRIVACY, ExitCode.STORAGE, ExitCode.USAGE):
            raise self._mend()
        self.worker.deaths = [*(at for at in self.worker.deaths if now - at < WORKER_WINDOW), now]
        if len(self.worker.deaths) > WORKER_STARTS:
            raise self._mend()
        self.tell(f"the worker ended ({_how(code)}); it is started again")
        self._start_worker()

    def _mend(self) -> FedfuseError:
        assert self.worker.process is not None
        code = self.worker.process.wait()
        error = FedfuseError(
            f"the worker ended ({_how(code)})\n{self.worker.last_words()}", where=str(self.worker.log), do="mend what it says"
        )
        if code in list(ExitCode):
            error.exit_code = ExitCode(code)
        return error


def greets(path: Path, *, seconds: float = 5.0, process: int | None = None) -> bool:
    """Whether a worker answers at that socket; if `process` is given, that very one, and not another client's."""
    try:
        with connect_to(path, seconds=seconds) as connection:
            if process is not None and process_of(connection) != process:
                return False
            hello = {"type": "hello", "wire": WIRE, "protocol": PROTOCOL, "version": VERSION, "only": "greet"}
            send(connection, Frame(header=hello), seconds=seconds)
            return receive(connection, body=0, seconds=seconds).type == "welcome"
    except (OSError, ProtocolError):
        return False


def require_wall(*, wall: Wall, users: tuple[int | None, int | None], allowed: bool) -> str:
    """What keeps the coordinator's code from this platform's files, and what this kernel leaves open: one line.

    Raises:
        InputError: nothing does, and nobody said that this is so wanted.
    """
    if users[0] is not None and users[1] is not None and users[0] != users[1]:
        return f"wall: the messenger is another user, and {wall}"
    if wall:
        return f"wall: the messenger is {wall}"
    if not allowed:
        raise InputError(
            "nothing would keep the coordinator's code from this platform's files: this kernel has no Landlock, and both "
            "processes would be the same user's",
            where="fedfuse client start",
            do="use the systemd units or --worker-user and --messenger-user; for a trial, say --no-wall",
        )
    return "NO WALL: code that the coordinator ships could read this platform's files"


def _importable(env: dict[str, str]) -> dict[str, str]:
    """The environment in which this very code is found, also where it is not installed but run from its folder."""
    root = str(Path(__file__).resolve().parents[2])
    if root != sysconfig.get_path("purelib"):
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([root, *env.get("PYTHONPATH", "").split(os.pathsep)])).rstrip(
            os.pathsep
        )
    return env


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # all of them are gone
    except PermissionError as error:
        raise StorageError("a process of this platform cannot be stopped", where=str(process.pid), do="stop it") from error


def _opened(path: Path) -> IO[bytes]:
    """The log, to be appended to; what is long is put aside once."""
    if path.exists() and path.stat().st_size > _LOG_SIZE:
        path.replace(path.with_suffix(".log.1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "ab")
