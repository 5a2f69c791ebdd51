"""The public side of the coordinator's server: only Flower's Fleet interface, only for approved platforms, and with reasons.

Flower serves everything on one port: the Fleet interface for SuperNodes, and beside it the Control and Runtime interfaces,
which authenticate nobody and let whoever comes register SuperNodes, start runs (that is: run code here) and take another's
task. So the server listens twice: on 127.0.0.1 for Flower's own processes and the operator, and on the public address through
this gate. It also tells a platform why it is refused, which Flower does not, and tells the operator who was refused.

Guarantees: what reaches Flower from the public port is a Fleet request that an approved key signed within Flower's window of
time, and is of bounded size; Flower then checks that the key belongs to the node. What nobody signed changes nothing
(`server.deployment.gate_verdicts`).
Flower's signature covers the time of a request alone; that nobody between the two can take one and use it is TLS's part.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from server.deployment.gate_verdicts import CREDENTIALS, Allowance, Judge
from shared.base.errors import StorageError
from shared.base.version import VERSION
from shared.protocol.authorities import is_nonce
from shared.protocol.gate_protocol import (
    AUTHORITY_HEADER,
    AUTHORITY_PATH,
    COMPLAINT_HEADER,
    COMPLAINT_PATH,
    GREETING_PATH,
    VERSION_HEADER,
    Complaint,
    Standing,
)
from shared.protocol.log_witness import HEADER as LOG_HEADER

log = logging.getLogger("fedfuse.gate")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET, _JOINS, _LEAVES = "/v1/fleet/", "/v1/fleet/activate-node", "/v1/fleet/deactivate-node"
STATUS_PATH, BUNDLE_PATH = "/fedfuse/v1/status", "/fedfuse/v1/bundle"
"""For the operator, on the private port alone."""
LARGEST = 1 << 25
"""Bytes of one request; Flower cuts arrays into pieces of 5 MiB."""
HEADERS, HEADER_BYTES = 48, 1 << 14
"""Headers of one request, and their bytes together. A SuperNode sends a dozen, of 1 KiB."""
SILENCE = 35.0
"""Seconds without a request after which a SuperNode is thought dead. It sends one every 24 s at least, also while it trains."""
HTTP: dict[str, Any] = {"http": "h11", "h11_max_incomplete_event_size": HEADER_BYTES}
"""Options of uvicorn: its other parser buffers headers without a limit."""
_ONCE = (*CREDENTIALS, COMPLAINT_HEADER, VERSION_HEADER, "content-length", "transfer-encoding", "host")
"""Headers that must not come twice: Flower would read the first of them where the gate has judged another."""


class _TooLarge(Exception):
    """The body is longer than announced, or than is allowed."""


class _Bad(Exception):
    """A request that no client of Fedfuse makes.

    Args:
        status: Of HTTP.
        why: For whoever sent it.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Sparing(logging.Filter):
    """A log filter that passes few records a minute: what strangers can make a library log must not fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._allowance = Allowance()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.levelno < logging.WARNING:
            return True
        if not self._allowance.take(record.created):
            return False
        record.msg = f"{record.msg}{self._allowance.omitted()}"
        return True


class Gate:
    """An ASGI application before Flower's.

    Args:
        inside: Flower's application.
        private: The port on which everything is let through; it must be bound to 127.0.0.1.
        bundles: Takes in a bundle, as JSON, and answers with JSON; on the private port alone.
        authorities: Answers a nonce with the authorities that the server's certificate may be of, signed.
        witness: Adds to that answer, given the nonce and what the platform kept of the last one ('' for nothing).
        notice: Told what a platform kept, with its greeting: before it is welcome, so that no run can ask it earlier.
        revive: Makes Flower forget that a SuperNode is connected. Whoever greets is about to start one; Flower would not
            take it back for a minute if the one before was killed. And a SuperNode that asks a second time to be connected, and
            for nothing between, has not got the first answer in time: Flower would refuse it for good, and it would end.
    """

    def __init__(
        self,
        inside: App,
        judge: Judge,
        *,
        private: int,
        bundles: Callable[[bytes], dict[str, Any]] | None = None,
        revive: Callable[[int], object] | None = None,
        authorities: Callable[[str], dict[str, str]] | None = None,
        witness: Callable[[str, str], dict[str, str]] | None = None,
        notice: Callable[[str], object] | None = None,
    ) -> None:
        self._inside, self._judge, self._private, self._bundles, self._revive = inside, judge, private, bundles, revive
        self._authorities, self._witness, self._notice = authorities, witness, notice
        self._joining: dict[str, asyncio.Lock] = {}
        """Platforms whose SuperNode's last request was to be connected; a second one waits for the first."""
        self._trouble = Allowance()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, answer it, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inside(scope, receive, send)
            return
        path, inner = scope["path"], (scope.get("server") or ("", 0))[1] == self._private
        if path == STATUS_PATH and inner:
            await _answer(send, 200, self._status())
        elif path == BUNDLE_PATH and inner and self._bundles is not None:
            await _answer(send, 200, await asyncio.to_thread(self._bundles, await _body(receive)))
        elif inner:
            await self._inside(scope, receive, send)
        else:
            await self._public(scope, receive, send, path)

    async def _public(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        try:
            headers = _headers(scope)
            if path == "/health" and scope["method"] in ("GET", "HEAD"):
                await self._inside(scope, receive, send)
            elif path == GREETING_PATH:
                await self._greet(headers, send)
            elif path == AUTHORITY_PATH and self._authorities is not None:
                nonce = scope.get("query_string", b"").decode("latin-1")
                if scope["method"] != "GET" or not is_nonce(nonce):
                    raise _Bad(404, "not found")
                found = self._authorities(nonce)
                if self._witness is not None:
                    found |= await asyncio.to_thread(self._witness, nonce, headers.get(LOG_HEADER, ""))
                await _answer(send, 200, found)
            elif path == COMPLAINT_PATH:
                await self._complaint(scope, headers, send)
            elif path.startswith(FLEET):
                await self._fleet(scope, headers, receive, send)
            else:
                raise _Bad(404, "not found")
        except _Bad as bad:
            await _answer(send, bad.status, {"detail": bad.why})
        except StorageError as error:
            # The list of platforms is damaged. Everybody waits; the log says it a few times a minute, not once a request.
            if self._trouble.take(time.time()):
                log.error("%s%s", error, self._trouble.omitted())
            await _answer(send, 503, {"detail": "the coordinator cannot read its list of platforms; try again later"})

    async def _fleet(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        now, size = time.time(), headers.get("content-length", "")
        if not (size.isascii() and size.isdigit() and len(size) <= len(str(LARGEST)) and int(size) <= LARGEST):
            raise _Bad(413, f"a request needs a length of at most {LARGEST} bytes")
        verdict = self._judge.judge(headers, now=now)
        self._judge.note(verdict, now=now)
        if verdict.standing is not Standing.WELCOME:
            # 401 is the answer at which Flower's SuperNode stops; it does not print the text, but ours asks the gate why.
            await _answer(send, 401, {"code": 1008, "detail": verdict.standing.explained()})
            return
        assert verdict.platform is not None
        name = verdict.platform.name
        self._judge.seen[name].alive = 0.0 if scope["path"] == _LEAVES else now
        if scope["path"] != _JOINS:
            self._joining.pop(name, None)
            await self._pass(scope, int(size), receive, send)
            return
        again = name in self._joining
        async with self._joining.setdefault(name, asyncio.Lock()):
            if again and self._revive is not None and verdict.platform.node:
                await asyncio.to_thread(self._revive, verdict.platform.node)
            await self._pass(scope, int(size), receive, send)

    async def _pass(self, scope: Scope, size: int, receive: Receive, send: Send) -> None:
        """Have Flower answer, and let in no more bytes than were announced."""
        left, answered = size, False

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLarge
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._inside(scope, bounded, noted)
        except _TooLarge:
            if not answered:
                raise _Bad(413, "more came than content-length says") from None

    async def _greet(self, headers: dict[str, str], send: Send) -> None:
        now = time.time()
        if self._notice is not None and headers.get(LOG_HEADER):
            await asyncio.to_thread(self._notice, headers[LOG_HEADER])
        verdict = self._judge.judge(headers, now=now)
        platform = verdict.platform
        if verdict.standing is Standing.WELCOME and platform is not None:
            seen = self._judge.seen.get(platform.name)
            if seen is not None and now - seen.alive < SILENCE:
                verdict = replace(verdict, standing=Standing.PRESENT)
            elif self._revive is not None and platform.node:
                await asyncio.to_thread(self._revive, platform.node)
        self._judge.note(verdict, now=now, version=headers.get(VERSION_HEADER, ""), authorities=headers.get(AUTHORITY_HEADER, ""))
        await _answer(send, 200, self._judge.greeting(verdict, now=now))

    async def _complaint(self, scope: Scope, headers: dict[str, str], send: Send) -> None:
        """A platform that could not verify this server says so, over a connection that it does not trust."""
        now = time.time()
        try:
            why = Complaint(scope.get("query_string", b"").decode("ascii"))
        except ValueError:
            raise _Bad(404, "not found") from None
        verdict = self._judge.judge_complaint(headers, now=now)
        self._judge.note(verdict, now=now, why=why.explained if verdict.proven else "")
        await _answer(send, 200 if verdict.proven else 401, {})

    def _status(self) -> dict[str, Any]:
        return {"version": VERSION, "time": time.time(), "seen": {name: vars(seen) for name, seen in self._judge.seen.items()}}


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by name.

    Raises:
        _Bad: there are too many, or one on which the judgement rests comes twice.
    """
    raw = scope["headers"]
    if len(raw) > HEADERS or sum(len(name) + len(value) for name, value in raw) > HEADER_BYTES:
        raise _Bad(431, f"at most {HEADERS} headers of {HEADER_BYTES} bytes together")
    names = [name.decode("latin-1").lower() for name, _ in raw]
    if any(names.count(name) > 1 for name in _ONCE):
        raise _Bad(400, "a header came twice that may come once")
    return dict(zip(names, (value.decode("latin-1") for _, value in raw), strict=True))


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
