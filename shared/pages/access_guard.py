"""Who may ask: a bearer token or the rights of a Unix socket; and how much is read of a request before it is refused.

A page of another site, in a browser on this machine, can send requests to 127.0.0.1 as well. It does not know the token; and a
request for another host's name, from another origin, or whose body is not declared as JSON is refused before that is asked.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 1 << 16
"""Bytes: a hundred events with the longest ids there may be."""
OPEN_PATHS = ("/", "/healthz", "/openapi.json")
"""What says nothing of the platform."""
_ONCE = ("host", "authorization", "content-type", "content-length", "origin")
_ALWAYS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class _Refused(Exception):
    """A request that is not looked at.

    Args:
        status: Of HTTP.
        found, do: For whoever sent it.
    """

    def __init__(self, status: int, found: str, do: str = "") -> None:
        super().__init__(found)
        self.status, self.found, self.do = status, found, do


class AccessGuard:
    """An ASGI application before the API.

    Args:
        token: Asked of everybody but for `OPEN_PATHS`; None where the socket's own rights decide.
        hosts: Names, with their port, under which this server is asked; None: any, on a Unix socket.
    """

    def __init__(self, inside: AsgiApp, *, token: str | None, hosts: Iterable[str] | None) -> None:
        self.inside = inside
        self._token = None if token is None else token.encode("ascii")
        self._hosts = None if hosts is None else frozenset(name.casefold() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self.inside(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        begun = False

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message.get("headers", []), *_ALWAYS]}
            await send(message)

        try:
            size = self._judged(scope)
            await self.inside(scope, _bounded(receive, size), noted)
        except _Refused as refused:
            if not begun:
                await _answer(noted, refused)

    def _judged(self, scope: Scope) -> int:
        """The length of the body of a request that may pass."""
        headers = _headers(scope)
        host = headers.get("host", "").casefold()
        if self._hosts is not None and host not in self._hosts:
            raise _Refused(421, "this server is not asked by that name", "use the address that it said when it was started")
        origin = headers.get("origin")
        if origin is not None and origin.casefold() not in (f"http://{host}", f"https://{host}"):
            raise _Refused(403, "another site asks")
        reads = scope["method"] in ("GET", "HEAD")
        if not (reads and scope["path"] in OPEN_PATHS):
            self._require_token(headers.get("authorization", ""))
        if reads:
            return 0
        if headers.get("content-type", "").split(";")[0].strip().casefold() != "application/json":
            raise _Refused(415, "the body is not declared as JSON", "send content-type: application/json")
        size = headers.get("content-length", "")
        if not (size.isascii() and size.isdigit() and len(size) <= len(str(LARGEST_BODY)) and int(size) <= LARGEST_BODY):
            raise _Refused(413, f"a body needs a length of at most {LARGEST_BODY} bytes")
        return int(size)

    def _require_token(self, given: str) -> None:
        if self._token is None:
            return
        kind, _, value = given.partition(" ")
        # Compared in constant time, whatever was sent: how much of it is right is not to be measured.
        same = hmac.compare_digest(value.strip().encode("utf-8", "surrogateescape"), self._token)
        if kind.casefold() != "bearer" or not same:
            raise _Refused(
                401, "the token is missing or another one", "send authorization: Bearer TOKEN, with what is in the token file"
            )


def _headers(scope: Scope) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").casefold()
        if name in _ONCE and name in found:
            raise _Refused(400, f"{name} comes twice")
        if name == "transfer-encoding":
            raise _Refused(411, "a body needs a length")
        found[name] = value.decode("latin-1")
    return found


def _bounded(receive: Receive, size: int) -> Receive:
    left = size

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _Refused(413, "more came than content-length says")
        return message

    return bounded


async def _answer(send: Send, refused: _Refused) -> None:
    body = json.dumps({"found": refused.found, "do": refused.do}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
