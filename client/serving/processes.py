"""Further processes that answer at the same address: an interpreter computes one answer at a time, and has one core.

Each reads the model once more, from where it was kept, into its own memory except for what is memory-mapped. All accept
connections on the socket of the first. They end with the first one, whatever ended it, and it ends when any of them does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from client.serving.answers import PlatformAnswers
from client.serving.api import create_api
from shared.base.errors import FedfuseError, InputError, StorageError
from shared.pages.local_server import serve

_PATIENCE = 15.0
"""Seconds in which requests at work may end, and a process with them."""

Maker = Callable[[], PlatformAnswers]


@contextmanager
def further_processes(
    count: int,
    make: Maker,
    listener: socket.socket,
    *,
    token: str | None,
    hosts: list[str] | None,
    like: PlatformAnswers,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """So many processes answer, too, for as long as the block goes on.

    Args:
        make: Makes the answers of one, with a log that is joined, and is pickled for that.
        token, hosts: As `shared.pages.local_server.serve`.
        like: The answers of this process, to which theirs are to be equal.
        tell: Told what begins.

    Raises:
        InputError: one of them read other rows than this process.
        StorageError: one of them could not start, or ended before its time.
    """
    context = multiprocessing.get_context("spawn")
    started: list[tuple[BaseProcess, Connection]] = []
    over, lost = threading.Event(), threading.Event()

    def watch() -> None:
        wait([process.sentinel for process, _ in started])
        if not over.is_set():
            lost.set()
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        for number in range(count):
            tell(f"starting process {number + 2} of {count + 1}")
            ours, theirs = context.Pipe()
            one = context.Process(target=_answer, args=(make, listener, token, hosts, theirs), daemon=True)
            one.start()
            started.append((one, ours))
            theirs.close()
        for _, ours in started:
            _require_equal(ours, like)
        if started:
            threading.Thread(target=watch, name="serving-processes", daemon=True).start()
        yield
    finally:
        over.set()
        for _, ours in started:
            ours.close()
        for process, _ in started:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
    if lost.is_set():
        raise StorageError("a process of the server has ended before its time", do="see the log; start it again")


def _require_equal(ours: Connection, like: PlatformAnswers) -> None:
    try:
        said = ours.recv()
    except (EOFError, ConnectionError):
        raise StorageError("a process of the server could not start", do="see what it printed; is there memory left?") from None
    if isinstance(said, str):
        raise StorageError("a process of the server could not start", quote=said, do="mend it, and start again")
    if said != like.of_what:
        raise InputError("a source has changed while it was read", do="start again")


def _answer(make: Maker, listener: socket.socket, token: str | None, hosts: list[str] | None, first: Connection) -> None:
    # A terminal sends Ctrl-C to every process; the first one says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answers = make()
    except FedfuseError as error:
        first.send(str(error))
        return
    first.send(answers.of_what)

    def until_the_first_ends() -> None:
        try:
            first.recv()
        except (EOFError, ConnectionError):
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=until_the_first_ends, name="serving-first", daemon=True).start()
    serve(create_api(answers), listener, token=token, hosts=hosts)
