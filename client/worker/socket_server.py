"""The worker's door: a Unix socket that lets in chosen users of this machine only, and nothing but whole, known requests.

The worker is behind it, and code that the coordinator shipped in front of it. So everything here is bounded: who may
connect (the kernel says which user it is), how many at a time, for how long, how many bytes. Requests are answered one
after the other. Whoever asks and goes away does not stop what was begun: the answer is remembered by the worker, and the
same question gets it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, Self

from client.messenger.unix_socket import user_of
from client.messenger.wire import MAX_BODY, WIRE, Frame, Hangup, pack_record, receive, send, unpack_record
from shared.base.errors import ProtocolError
from shared.base.version import VERSION
from shared.protocol.flower_records import request_from, to_record
from shared.protocol.messages import PROTOCOL, Answer, Reason, Refusal, Request

log = logging.getLogger("fedfuse.door")

HELLO = 1 << 14
"""Bytes of a hello, at most."""
GREETING, REQUEST = 10.0, 120.0
"""Seconds that a hello may take, and then a request, to arrive whole."""
VISITORS = 8
"""Connections at a time; a frame at its limit is the memory that one may take."""


class RequestHandler(Protocol):
    """Whoever answers; `client.worker.request_handler.Worker` does."""

    @property
    def name(self) -> str:
        """The platform's public name."""

    def handle(self, request: Request, warrant: str = "", receipt: str = "") -> Answer:
        """Answer one request, whatever it is; never raise."""


class Door:
    """A listening socket in front of `handler`. `serve` blocks until `close`.

    Args:
        listener: As `client.messenger.unix_socket` gives it.
        users: User ids that may connect; this process's own where none is named.
        body: The most bytes of arrays in one request.
        greeting, request: Seconds that each may take to arrive whole.
    """

    def __init__(
        self,
        handler: RequestHandler,
        listener: socket.socket,
        *,
        users: Iterable[int] = (),
        body: int = MAX_BODY,
        greeting: float = GREETING,
        request: float = REQUEST,
    ) -> None:
        self._handler, self._listener = handler, listener
        self._body, self._greeting, self._request = body, greeting, request
        self._users = frozenset(users) or frozenset({os.getuid()})
        self._seats = threading.BoundedSemaphore(VISITORS)
        self._serial = threading.Lock()
        self._closed = threading.Event()
        self._refused: set[int] = set()

    def serve(self) -> None:
        """Let visitors in until `close`."""
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed.is_set():
                    return
                raise
            if not self._seats.acquire(blocking=False):
                # Without a word: whoever fills all seats must not hold one more.
                connection.close()
                continue
            threading.Thread(target=self._visit, args=(connection,), daemon=True, name="visitor").start()

    def close(self) -> None:
        """Let nobody in any more; what is being answered goes on."""
        self._closed.set()
        # Closing alone would leave `accept` waiting.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the door was closed already")
        self._listener.close()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve, daemon=True, name="door").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _visit(self, connection: socket.socket) -> None:
        try:
            with connection:
                user = user_of(connection)
                if user in self._users:
                    self._converse(connection)
                elif user not in self._refused:  # said once: a visitor must not fill the platform's log
                    self._refused.add(user)
                    log.warning("user id %d tried to connect and was refused; allowed: %s", user, sorted(self._users))
        except ProtocolError as error:
            log.info("turned a visitor away: %s", error.found)
        finally:
            self._seats.release()

    def _converse(self, connection: socket.socket) -> None:
        hello = receive(connection, header=HELLO, body=0, seconds=self._greeting)
        if hello.type != "hello":
            raise ProtocolError(f"a visitor began with {hello.type[:40]!r}")
        spoken = hello.header.get("protocol")
        place = {"wire": WIRE, "protocol": PROTOCOL, "version": VERSION, "platform": self._handler.name}
        if type(spoken) is not int or spoken != PROTOCOL:
            theirs = str(hello.header.get("version"))[:40]
            log.error(
                "the coordinator runs fedfuse %s and speaks protocol %s; this platform has fedfuse %s, which speaks %s: "
                "install the coordinator's version",
                theirs,
                str(spoken)[:20],
                VERSION,
                PROTOCOL,
            )
            return send(connection, Frame(header={"type": "turned-away", "why": "version", **place}), seconds=self._greeting)
        send(connection, Frame(header={"type": "welcome", "busy": self._serial.locked(), **place}), seconds=self._greeting)
        if hello.header.get("only") == "greet":
            return None
        frame = receive(connection, body=self._body, seconds=self._request)
        answer = self._answer(frame, str(hello.header.get("warrant", "")), str(hello.header.get("receipt", "")))
        try:
            # An answer may be large, and the messenger is a process on a busy machine.
            send(connection, pack_record("answer", to_record(answer)), seconds=self._request)
        except Hangup:
            log.warning("nobody waited for the answer to '%s'; it is kept for who asks again", answer.kind)
        return None

    def _answer(self, frame: Frame, warrant: str, receipt: str) -> Answer:
        try:
            if frame.type != "request":
                raise ProtocolError(f"a '{frame.type[:40]}' where a request was expected")
            request = request_from(unpack_record(frame))
        except ProtocolError as error:
            log.info("refused what is no request: %s", error.found)
            return Refusal(run="unknown", platform=self._handler.name, round=0, reason=Reason.MESSAGE)
        with self._serial:
            return self._handler.handle(request, warrant, receipt)
