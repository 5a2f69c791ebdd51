"""The worker's process in a deployment: it locks the ledger, opens its socket, and answers until it is stopped."""

from __future__ import annotations

import grp
import logging
import os
import pwd
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from client.config.deployment_folder import Deployment
from client.messenger.unix_socket import inherited, listen
from client.supernode.sandbox import close_to_others
from client.worker.socket_server import Door
from shared.base.errors import InputError
from shared.base.folder_owner import require_owner

log = logging.getLogger("fedfuse.worker")


def serve_worker(
    deployment: Deployment,
    *,
    at: Path | None = None,
    users: Iterable[str] = (),
    group: str | None = None,
    metrics_port: int = 0,
) -> None:
    """Answer the messenger until SIGTERM or SIGINT.

    Args:
        at: The socket; by default the deployment's own. systemd may bring one instead.
        users: Names or numbers of the users that may connect; by default this one alone.
        group: That may open the socket, where the messenger is another user's.
        metrics_port: Prometheus metrics on 127.0.0.1; 0 for none.

    Raises:
        InputError: the platform file has a mistake, or there is no such user; or this is root, and its state another user's.
        StorageError: another worker of this platform runs, or the ledger cannot be used.
        PrivacyError: the ledger was altered, or is of another budget.
    """
    # Before a password of a database is read from the environment, and before torch takes its seconds.
    close_to_others()
    from client.config.platform_file import load
    from client.worker.request_handler import Worker
    from client.worker.telemetry import WorkerMetrics
    from shared.base.prometheus import new_registry, serve_metrics
    from shared.ledger.reading import read_ledger

    file = load(deployment.file)
    require_owner(file.state)
    # This user besides: its own health check; it could read everything anyway.
    allowed = sorted({os.getuid(), *(number for name in users if (number := user_id(name)) is not None)})
    file.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    registry = new_registry()
    with ExitStack() as stack:
        observer = None
        if metrics_port:
            observer = WorkerMetrics(registry, state=file.state, budget=file.privacy.epsilon)
            stack.enter_context(serve_metrics(registry, port=metrics_port))
        worker = Worker(file, state=file.state, ledger=file.ledger, observer=observer)
        stack.callback(worker.close)
        worker.hold()
        if observer is not None:
            # Not before the worker holds it: only then is the torn end that a crash may leave cut off.
            observer.spent(read_ledger(file.ledger).epsilon)
        if file.federation.coordinator is None:
            log.warning("no coordinator is pinned ([federation] coordinator): whoever reaches this worker may ask")
        door = Door(worker, _listener(at or deployment.socket, group), users=allowed)
        _until_told(door)
        log.info("platform %s is ready, for user ids %s", file.name, allowed)
        door.serve()
    # What a visitor's thread still computes is not waited for: its charge remains, and pays for the next attempt.
    log.info("stopped")
    logging.shutdown()
    os._exit(0)


def _listener(path: Path, group: str | None) -> socket.socket:
    brought = inherited()
    return brought if brought is not None else listen(path, group=group_id(group))


def _until_told(door: Door) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        door.close()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def user_id(name: str | None) -> int | None:
    """Number of a user of this machine.

    Raises:
        InputError: there is none of that name.
    """
    return _number(name, "user", lambda known: pwd.getpwnam(known).pw_uid)


def group_id(name: str | None) -> int | None:
    """Number of a group of this machine.

    Raises:
        InputError: there is none of that name.
    """
    return _number(name, "group", lambda known: grp.getgrnam(known).gr_gid)


def _number(name: str | None, what: str, look_up: Callable[[str], int]) -> int | None:
    try:
        return None if name is None else int(name) if name.isdigit() else look_up(name)
    except KeyError:
        raise InputError(
            f"there is no {what} {name!r}", where="the options", do=f"name a {what} of this machine, or its number"
        ) from None
