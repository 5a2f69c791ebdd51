"""Unix sockets that belong to one user: made 0600, and asked who connects."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shared.base.errors import InputError, StorageError

WAITING = 16
"""Connections that the kernel keeps for a listener that is busy."""
BROKER = "FEDFUSE_BROKER"
"""Environment variable with the descriptor of the channel to the socket broker outside; set where the messenger is caged."""
_CREDENTIALS = struct.Struct("3i")
_LONGEST = 100
"""Bytes of a socket's own path; Linux allows 107."""


def listen(path: Path, *, group: int | None = None) -> socket.socket:
    """A socket at `path`, for this user alone (0600), or for a group as well (0660).

    Args:
        group: For a messenger under a user of its own. The listener still asks the kernel which user it is.

    Raises:
        StorageError: somebody listens there, or it cannot be made.
        InputError: this system does not tell who connects.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        raise InputError("this system does not say who connects to a socket", where=str(path), do="run the worker on Linux")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_socket():
            if _answers(path):
                raise StorageError("another worker listens here", where=str(path), do="stop it; a platform has one worker")
            path.unlink()  # left behind by a worker that was killed
        mask = os.umask(0o177)
        try:
            with _near(path) as name:
                listener.bind(name)
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        listener.listen(WAITING)
    except OSError as error:
        listener.close()
        raise StorageError(
            f"the worker's socket cannot be made: {error.strerror}", where=str(path), do="check the folder and its rights"
        ) from None
    except BaseException:
        listener.close()
        raise
    return listener


def inherited(environment: Mapping[str, str] | None = None) -> socket.socket | None:
    """The socket that systemd made for this process (socket activation), or None. Its owner and mode are the unit's."""
    found = os.environ if environment is None else environment
    if found.get("LISTEN_PID") != str(os.getpid()) or found.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=3)


def connect_to(path: Path, *, seconds: float | None = None) -> socket.socket:
    """A connection to whoever listens at `path`.

    Raises:
        OSError: nobody listens there, or this user may not connect.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        with _near(path) as name:
            connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_through(broker: int, *, seconds: float) -> socket.socket:
    """A connection to the worker from inside the messenger's cage, where no Unix socket can be opened.

    Args:
        broker: Descriptor of the channel to `client.supernode.socket_broker`, which opens the connection outside.

    Raises:
        OSError: nobody listens, or the broker has ended.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, socket.socket(fileno=os.dup(broker)) as channel:
            socket.send_fds(channel, [b"?"], [theirs.fileno()])
        ours.settimeout(seconds)
        code, found, _, _ = socket.recv_fds(ours, 2, 1)
    if not found:
        number = int.from_bytes(code, "big") or errno.ECONNRESET
        raise OSError(number, os.strerror(number))
    connection = socket.socket(fileno=found[0])
    connection.settimeout(seconds)
    return connection


def user_of(connection: socket.socket) -> int:
    """User id of the process at the other end. The kernel noted it when that process connected; it has no say in it."""
    return _peer(connection)[1]


def process_of(connection: socket.socket) -> int:
    """Id of the process at the other end: of a listener, the one that listens."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(raw)
    return int(process), int(user)


def _answers(path: Path) -> bool:
    try:
        connect_to(path, seconds=1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def _near(path: Path) -> Iterator[str]:
    """A short name of `path`: a socket's own may have 107 bytes only, and a folder's may be longer than that."""
    if len(os.fsencode(path)) < _LONGEST:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
