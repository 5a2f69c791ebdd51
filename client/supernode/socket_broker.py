"""Connections to the worker for the messenger's cage, in which no process can open a Unix socket.

`start_broker` forks a process that stays outside the cage. The other end of its channel is inherited by everything in the cage;
whoever sends one byte and a socket through it gets back, over that socket, a new connection to the worker and to nothing else:
the path is fixed at the start and no part of a request. `client.messenger.unix_socket.connect_through` is the other side.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
from pathlib import Path

from client.messenger.unix_socket import connect_to

CONNECTING = 10.0
"""Seconds that a connection to the worker may take."""
_DIES_WITH_PARENT = 1


def start_broker(path: Path) -> int:
    """Fork the broker of the worker's socket at `path`.

    Call it before the process is confined and before it has threads.

    Returns:
        The descriptor of the cage's end of the channel. It is not inherited by default.
    """
    # Whole messages: a byte and its descriptor cannot mix with another process's.
    outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        code = 1
        try:
            inside.close()
            _end_with(parent)
            serve_broker(outside, path)
            code = 0
        finally:
            os._exit(code)
    outside.close()
    return inside.detach()


def serve_broker(channel: socket.socket, path: Path) -> None:
    """Answer requests until every holder of the other end has closed it."""
    while True:
        # One descriptor at most: the kernel closes all others that come along.
        data, found, _, _ = socket.recv_fds(channel, 1, 1)
        if not data:
            return
        for descriptor in found:
            _answer(descriptor, path)


def _answer(descriptor: int, path: Path) -> None:
    # A reply socket that is none, is full or is closed is its sender's loss; the broker goes on.
    try:
        reply = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        return
    with reply, contextlib.suppress(OSError):
        reply.setblocking(False)
        try:
            connection = connect_to(path, seconds=CONNECTING)
        except OSError as error:
            reply.send((error.errno or errno.ETIMEDOUT).to_bytes(2, "big"))
            return
        with connection:
            # The flag belongs to the connection, not to this process: whoever gets it would read without waiting.
            connection.setblocking(True)
            socket.send_fds(reply, [bytes(2)], [connection.fileno()])


def _end_with(parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # the parent ended before the kernel knew
