"""A server of one machine's own: where it listens, for whom, and how it stops."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import stat
import sys
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from shared.base.atomic_files import create_whole
from shared.base.errors import InputError, StorageError
from shared.pages.access_guard import AccessGuard, AsgiApp

MOST_CONNECTIONS = 64
_HEADER_BYTES, _GRACE, _KEEP_ALIVE = 1 << 14, 10, 30
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")
_SWITCH = 0.0005
"""Seconds after which a thread that computes lets another one have the interpreter: by default ten times as long, which answers
would wait for."""


def token_in(path: Path, *, make: bool) -> str:
    """The token of a file that its owner alone can read.

    Args:
        make: Whether a file that is not there is made, with a new token (mode 0600).

    Raises:
        InputError: it is not there, others can read it, or it holds no token.
        StorageError: it cannot be made.
    """
    do = "put 32 to 128 of the letters A-Z a-z 0-9 _ - into it, chmod 600"
    if make and not path.exists():
        create_whole(path, (secrets.token_urlsafe(32) + "\n").encode("ascii"), mode=0o600)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"the token cannot be read: {error.strerror}", where=str(path), do=do) from None
    with os.fdopen(handle, "rb") as file:
        mode = os.fstat(handle)
        if mode.st_uid != os.geteuid() or stat.S_IMODE(mode.st_mode) & 0o077:
            raise InputError("others can read the token", where=str(path), do="chmod 600, and make a new one")
        text = file.read(1024).strip().decode("ascii", "replace")
    if not _TOKEN.fullmatch(text):
        raise InputError("this is no token", where=str(path), do=do)
    return text


def require_private(host: str, *, network: bool, token: Path | None) -> None:
    """Check that whoever opens the server to a network means it.

    Args:
        network: Whether that was said outright.
        token: The token file that was named.

    Raises:
        InputError: it was not, or no token file is named.
    """
    if _is_loopback(host):
        return
    if not network:
        raise InputError(f"{host} is more than this machine", where="--host", do="add --network if others are to reach it")
    if token is None:
        raise InputError("a network needs a token of your own", where="--network", do="name its file: --token FILE")


def tcp_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        StorageError: the address is in use, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as error:
        raise StorageError(f"cannot listen: {error}", where=f"{host}:{port}", do="choose another --port or --host") from None


def names_of(listener: socket.socket, host: str) -> list[str] | None:
    """The names under which a listener is asked, with its port; None where any will do: a token or a socket's rights decide."""
    if listener.family == socket.AF_UNIX or not _is_loopback(host):
        return None
    port = listener.getsockname()[1]
    return [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")]


def serve(api: AsgiApp, listener: socket.socket, *, token: str | None, hosts: list[str] | None) -> None:
    """Answer until SIGTERM or SIGINT; requests at work are finished first, for ten seconds at most."""
    sys.setswitchinterval(_SWITCH)
    previous = signal.signal(signal.SIGTERM, _stopped)
    server = uvicorn.Server(
        uvicorn.Config(
            AccessGuard(api, token=token, hosts=hosts),
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            http="h11",  # its other parser buffers headers without a limit
            h11_max_incomplete_event_size=_HEADER_BYTES,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GRACE,
        )
    )
    # Otherwise each request that is refused under load would be a line.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        server.run(sockets=[listener])
    except SystemExit as stopped:
        # Uvicorn raises the signal again when all is done.
        if stopped.code:
            raise
    finally:
        signal.signal(signal.SIGTERM, previous)
        listener.close()


def _stopped(number: int, frame: FrameType | None) -> Any:
    raise SystemExit(0)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
