"""The messenger's process: Flower's own SuperNode, kept to what it needs, looking for work more often and starting it faster.

Flower's loop asks the coordinator for work every 3 s, a number that no argument reaches. Its module is given a clock that
sleeps less, and a `subprocess` that passes one descriptor on; nothing else of it is touched, and were the loop written otherwise
one day, it would only wait longer again, or its ClientApps would not reach the worker.
What it starts by the name `flower-superexec` is `client.supernode.fork_launcher`, which makes a ClientApp's process in a tenth of
the time.

Where the cage closes Unix sockets, connections to the worker come from `client.supernode.socket_broker`, a process outside that
is forked before the cage is shut; the descriptor of its channel is inherited by every process in the cage.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from client.config.deployment_folder import Deployment
from client.messenger.unix_socket import BROKER
from client.supernode import socket_broker as broker
from client.supernode.authority_update import LiveAuthorities, watch_authorities
from client.supernode.fork_launcher import Passing, install_fork_launcher
from client.supernode.gate_client import hear
from client.supernode.sandbox import confine, harmless_devices, of_python, wall
from shared.base.errors import FedfuseError, InputError
from shared.flower import flower_patches
from shared.flower.kept_process import Keeping
from shared.protocol.invitation import Invitation
from shared.protocol.keys import load_node_key

IDLE, PATIENT = 0.25, 3.0
"""Seconds between two looks for work: soon after there was some, and when there has been none for long."""
LONG = 120.0
LARGEST_FILE = 1 << 28
"""Bytes of any file that the messenger may write."""
KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "PYTHONPATH")
"""What a messenger may have of its environment. The platform's may hold a database's password, and the coordinator's code
can read the messenger's."""


@dataclass(frozen=True, kw_only=True)
class Messenger:
    """How the SuperNode of a platform is started.

    Args:
        folder: The messenger's own; it may write nowhere else.
        address: HOST:PORT of the coordinator.
        socket: The worker's.
        authority, key, trusted: Files that it may read.
        idle: Seconds between looks for work.
        coordinator: The line of the coordinator's key, which says when its authority is another; '' asks nobody.
    """

    folder: str
    address: str
    socket: str
    authority: str
    key: str
    trusted: str | None = None
    idle: float = IDLE
    coordinator: str = ""

    @classmethod
    def of(cls, deployment: Deployment, invitation: Invitation, *, socket: Path | None = None) -> Messenger:
        """The messenger of a platform's folder.

        Args:
            socket: The worker's, if it is not in its own place.
        """
        return cls(
            folder=str(deployment.node),
            address=invitation.address,
            coordinator=invitation.coordinator,
            socket=str((socket or deployment.socket).absolute()),
            authority=str(deployment.authority),
            key=str(deployment.node_key),
            trusted=str(deployment.trusted) if deployment.trusted.exists() else None,
        )

    def paced(self, seconds: float) -> Messenger:
        """The same, looking for work no more often than that; Flower's own pace is the slowest, whatever is asked for."""
        return replace(self, idle=min(max(IDLE, seconds), PATIENT) if math.isfinite(seconds) else PATIENT)

    def text(self) -> str:
        """As one line, for a process's argument; there is no secret in it."""
        return json.dumps(asdict(self))


class Clock:
    """Stands in for the `time` module in Flower's loop.

    Args:
        idle: Seconds that a sleep of Flower's becomes while there is work now and then.
    """

    def __init__(self, idle: float) -> None:
        self._idle, self._quiet = idle, 0.0

    def sleep(self, seconds: float) -> None:
        """Sleep, but not so long."""
        if seconds < PATIENT:  # waiting for an answer of the ClientApp: there is work
            self._quiet, seconds = 0.0, min(seconds, self._idle)
        else:
            seconds = self._idle if self._quiet < LONG else PATIENT
            self._quiet += seconds
        time.sleep(seconds)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the real module's."""
        return getattr(time, name)


def supernode_environment(folder: Path, *, given: dict[str, str] | None = None) -> dict[str, str]:
    """The messenger's environment: what it needs, and nothing that it was not meant to have."""
    found = dict(os.environ) if given is None else given
    kept = {name: found[name] for name in KEPT if name in found}
    kept |= {name: value for name, value in found.items() if name.startswith("FEDFUSE_LOG_")}
    # Flower starts its own commands by name.
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '/usr/bin:/bin')}"
    return kept | {
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": found.get("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.1"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def end_with_a_thread() -> None:
    """From now on end this process when one of its threads dies, so that whoever started it starts it again.

    A full disk ended the thread of Flower's heartbeat: its SuperNode went on looking for work, and was offline for good.
    """

    def died(what: threading.ExceptHookArgs) -> None:
        if issubclass(what.exc_type, SystemExit):
            return
        name = "?" if what.thread is None else what.thread.name
        _say(f"a thread of the messenger died ({name}: {what.exc_type.__name__}): it ends")
        os._exit(1)

    threading.excepthook = died


def _say(text: str) -> None:
    with suppress(Exception):  # the disk that the log is on may be full
        print(text, file=sys.stderr, flush=True)


def _restarting(how: str) -> None:
    _say(f"Flower's process that starts answers ended ({how}): it is started again")


def run_supernode(messenger: Messenger, *, caged: bool = True) -> None:
    """Become the SuperNode; does not return.

    Args:
        caged: Shut this process and all below it out of everything else, where the kernel can.

    Raises:
        InputError: `caged`, and this kernel cannot.
    """
    folder = Path(messenger.folder)
    for name in ("tmp", "flwr"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    # Taken before the clearing: once, it was read from what had just been emptied, and a proxy's address was lost.
    kept = supernode_environment(folder)
    os.environ.clear()
    os.environ.update(kept)
    # A log or a file without end must not fill the platform's disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    os.chdir(folder)  # Flower's processes must not find the coordinator's packages where this one was started
    port, passed = _free_port(), None
    if caged:
        passed = _shut(messenger, port)
    try:
        # From inside the cage: what a bundle may have put into this folder leads no write out of it.
        os.environ["PATH"] = f"{install_fork_launcher(folder / 'bin').parent}{os.pathsep}{os.environ['PATH']}"
    except OSError as error:
        print(f"ClientApps are started in Flower's own way, which takes longer: {error}", file=sys.stderr)
    from flwr.supernode.cli.flower_supernode import flower_supernode

    end_with_a_thread()
    flower_patches.supernode_clock(Clock(messenger.idle))
    flower_patches.supernode_ended_runs()
    if messenger.coordinator:
        _follow_authorities(messenger)
    flower_patches.supernode_processes(Keeping(_restarting, subprocess if passed is None else Passing(passed)))
    sys.argv = ["flower-supernode", *_words(messenger, port)]
    code = 1
    try:
        flower_supernode()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        # Flower's loop may end while its server's thread goes on, and the process would stay without doing anything.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ports(address: str, port: int, *, given: dict[str, str]) -> list[int]:
    """TCP ports that the messenger connects to: the coordinator's, its own runtime's, a proxy's, and 53 for long DNS answers.

    Args:
        port: Of Flower's runtime on 127.0.0.1.
        given: Its environment.
    """
    found = {int(address.rpartition(":")[2]), port, 53}
    for name in ("HTTPS_PROXY", "https_proxy"):
        proxy = urlsplit(given.get(name, ""))
        if proxy.hostname:
            found.add(proxy.port or (443 if proxy.scheme == "https" else 80))
    return sorted(found)


def _follow_authorities(messenger: Messenger) -> None:
    """Have Flower's client believe the coordinator's next certificate authority before its server shows it."""
    live, authority, key = LiveAuthorities(), Path(messenger.authority), load_node_key(Path(messenger.key))
    flower_patches.supernode_certificates(live)

    def take(bundle: str) -> None:
        live.add(bundle)
        with suppress(FedfuseError):
            hear(messenger.address, authority=authority, key=key)  # which tells the coordinator's people that it knows them

    watch_authorities(messenger.address, authority=authority, coordinator=messenger.coordinator, changed=take)


def _shut(messenger: Messenger, port: int) -> int | None:
    """Shut the cage; returns the descriptor of the broker's channel, or None where Unix sockets stay open.

    Raises:
        InputError: this kernel has no Landlock.
    """
    found = wall()
    if not found:
        raise InputError(
            "this kernel has no Landlock (5.13 and later)", where="the messenger", do="run it under a user of its own"
        )
    for left in found.open:
        print(f"this kernel does not close to the coordinator's code: {left}", file=sys.stderr)
    channel = broker.start_broker(Path(messenger.socket)) if found.sockets else None
    if channel is not None:
        os.environ[BROKER] = str(channel)
    readable = [Path(messenger.authority), Path(messenger.key), *([Path(messenger.trusted)] if messenger.trusted else [])]
    confine(
        read=[*of_python(), *readable],
        write=[Path(messenger.folder), *harmless_devices()],
        connect=ports(messenger.address, port, given=dict(os.environ)),
        listen=[port],
    )
    return channel


def _words(messenger: Messenger, port: int) -> list[str]:
    words = [
        "--superlink",
        messenger.address,
        "--root-certificates",
        messenger.authority,
        "--auth-supernode-private-key",
        messenger.key,
        "--node-config",
        f"socket={json.dumps(messenger.socket)}",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    return [*words, "--trusted-entities", messenger.trusted] if messenger.trusted else words


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    run_supernode(Messenger(**json.loads(sys.argv[1])), caged=sys.argv[2] == "caged")
