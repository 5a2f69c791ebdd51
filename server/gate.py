"""The public side of the coordinator's server: only Flower's Fleet interface, only for approved platforms, and with reasons.

Flower serves everything on one port: the Fleet interface for SuperNodes, and beside it the Control and Runtime interfaces,
which ask nobody who he is and let him register SuperNodes, start runs (that is: run code here) and take another's task. So
the server listens twice: on 127.0.0.1 for Flower's own processes and the operator, and on the public address through this
gate. It also tells a platform why it is refused, which Flower does not, and tells the operator of whom it was.

Guarantees: what reaches Flower from the public port is a Fleet request that names an approved key, was made within
Flower's window of time, and is of bounded size; Flower then checks the signature and that the key belongs to the node.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import logging
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import verify_signature

from server.platforms import Platform, Platforms
from shared.greeting import COMPLAINT_PATH, GREETING_PATH, VERSION_HEADER, Complaint, Standing
from shared.keys import fingerprint
from shared.messages import PROTOCOL
from shared.version import VERSION, release

log = logging.getLogger("fedfuse.gate")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET, _LEAVES = "/v1/fleet/", "/v1/fleet/deactivate-node"
STATUS_PATH, BUNDLE_PATH = "/fedfuse/v1/status", "/fedfuse/v1/bundle"
"""For the operator, on the private port alone."""
LARGEST = 1 << 25
"""Bytes of one request; Flower cuts arrays into pieces of 5 MiB."""
UNPROVEN = 1 << 16
"""Bytes of a request that are read before its signature is checked by anybody."""
QUESTIONS = 30.0
"""Looks for work a second that the server is asked to stand from all SuperNodes together: Flower takes some 8 ms for one."""
SILENCE = 35.0
"""Seconds without a request after which a SuperNode is thought dead. It sends one every 24 s at least, also while it trains."""
AGAIN = 60.0
"""Seconds before the same refusal of the same key is logged once more."""


class _TooLarge(Exception):
    """More came than was announced or is allowed."""


@dataclass
class Seen:
    """What the gate knows of one platform; times in seconds since 1970.

    Args:
        last: Its last request of any kind that was let through.
        alive: The last one of a SuperNode that has not said that it stops.
    """

    last: float = 0.0
    requests: int = 0
    alive: float = 0.0
    refused: float = 0.0
    reason: str = ""
    version: str = ""


class Judge:
    """Who may pass, and what was seen of everybody."""

    def __init__(self, platforms: Platforms, *, minimum: str) -> None:
        self._platforms, self._minimum = platforms, minimum
        self._said: dict[tuple[str, str], float] = {}
        self.seen: dict[str, Seen] = {}

    def judge(self, headers: dict[str, str], *, now: float, prove: bool) -> tuple[Standing, Platform | None, str]:
        """Standing of the request's key, its platform if it is known, and the key's fingerprint.

        Args:
            prove: Check the signature here, before more of the request is read.
        """
        try:
            key = load_pem_public_key(b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True))
            if not isinstance(key, EllipticCurvePublicKey):
                raise ValueError
            line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
            stamp = headers[TIMESTAMP_HEADER]
            age = now - datetime.fromisoformat(stamp).timestamp()
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        except (KeyError, ValueError, TypeError, OverflowError, binascii.Error):
            return Standing.UNSIGNED, None, "no key"
        platform, mark = self._platforms.by_key(line), fingerprint(line)
        if platform is None:
            return Standing.UNKNOWN, None, mark
        if platform.revoked is not None:
            return Standing.REVOKED, platform, mark
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return Standing.CLOCK, platform, mark
        if prove and not verify_signature(key, stamp.encode("ascii", "replace"), signature):
            return Standing.UNSIGNED, platform, mark
        version = headers.get(VERSION_HEADER, "")
        if version and (release(version) or (0, 0, 0)) < (release(self._minimum) or (0, 0, 0)):
            return Standing.OUTDATED, platform, mark
        return Standing.WELCOME, platform, mark

    def note(
        self, standing: Standing, platform: Platform | None, mark: str, *, now: float, version: str = "", why: str = ""
    ) -> None:
        """Remember what became of a request; log refusals, each kind of each key once a minute."""
        name = platform.name if platform is not None else f"key {mark}"
        if platform is None and name not in self.seen and len(self.seen) > 1000:
            return  # strangers can make as many keys as they like
        seen = self.seen.setdefault(name, Seen())
        if version:
            seen.version = version[:40]
        if standing is Standing.WELCOME:
            seen.last, seen.requests = now, seen.requests + 1
            self.seen.pop(f"key {mark}", None)  # it was a stranger's until it was approved
            return
        seen.refused, seen.reason = now, why or standing.value
        if now - self._said.get((mark, seen.reason), 0.0) >= AGAIN:
            self._said[mark, seen.reason] = now
            who = f"{name} ({mark})" if platform is not None else name
            log.warning("refused %s: %s", who, why or standing.explained(version=version, minimum=self._minimum))

    def greeting(self, standing: Standing, platform: Platform | None, *, now: float) -> dict[str, Any]:
        """What a platform is told about itself."""
        return {
            "standing": standing.value,
            "platform": platform.name if platform is not None else "",
            "time": now,
            "version": VERSION,
            "minimum": self._minimum,
            "pace": len(self._platforms.approved()) / QUESTIONS,
            "protocol": PROTOCOL,
        }


class Gate:
    """An ASGI application before Flower's.

    Args:
        inside: Flower's application.
        private: The port on which everything is let through; it must be bound to 127.0.0.1.
        bundles: Takes in a bundle, as JSON, and answers with JSON; on the private port alone.
        revive: Makes Flower forget that a SuperNode is connected. Whoever greets is about to start one; Flower would not
            take it back for a minute if the one before was killed.
    """

    def __init__(
        self,
        inside: App,
        judge: Judge,
        *,
        private: int,
        bundles: Callable[[bytes], dict[str, Any]] | None = None,
        revive: Callable[[int], object] | None = None,
    ) -> None:
        self._inside, self._judge, self._private, self._bundles, self._revive = inside, judge, private, bundles, revive

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
        elif inner or (path == "/health" and scope["method"] in ("GET", "HEAD")):
            await self._inside(scope, receive, send)
        elif path == GREETING_PATH:
            await self._greet(scope, send)
        elif path == COMPLAINT_PATH:
            await self._complaint(scope, send)
        elif path.startswith(FLEET):
            await self._fleet(scope, receive, send)
        else:
            await _answer(send, 404, {"detail": "not found"})

    async def _fleet(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, now = _headers(scope), time.time()
        size = headers.get("content-length", "")
        if not (size.isascii() and size.isdigit()) or int(size) > LARGEST:
            await _answer(send, 413, {"detail": f"a request needs a length of at most {LARGEST} bytes"})
            return
        standing, platform, mark = self._judge.judge(headers, now=now, prove=int(size) > UNPROVEN)
        self._judge.note(standing, platform, mark, now=now)
        if standing is not Standing.WELCOME:
            # 401 is the answer at which Flower's SuperNode stops; it does not print the text, but ours asks the gate why.
            await _answer(send, 401, {"code": 1008, "detail": standing.explained()})
            return
        assert platform is not None
        self._judge.seen[platform.name].alive = 0.0 if scope["path"] == _LEAVES else now
        left = int(size)

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLarge
            return message

        await self._inside(scope, bounded, send)

    async def _greet(self, scope: Scope, send: Send) -> None:
        headers, now = _headers(scope), time.time()
        standing, platform, mark = self._judge.judge(headers, now=now, prove=True)
        if standing is Standing.WELCOME and platform is not None:
            seen = self._judge.seen.get(platform.name)
            if seen is not None and now - seen.alive < SILENCE:
                standing = Standing.PRESENT
            elif self._revive is not None and platform.node:
                await asyncio.to_thread(self._revive, platform.node)
        self._judge.note(standing, platform, mark, now=now, version=headers.get(VERSION_HEADER, ""))
        await _answer(send, 200, self._judge.greeting(standing, platform, now=now))

    async def _complaint(self, scope: Scope, send: Send) -> None:
        """A platform that could not verify this server says so, over a connection that it does not trust."""
        headers, now = _headers(scope), time.time()
        try:
            why = Complaint(scope.get("query_string", b"").decode("ascii"))
        except ValueError:
            await _answer(send, 404, {"detail": "not found"})
            return
        _, platform, mark = self._judge.judge(headers, now=now, prove=False)
        self._judge.note(Standing.UNSIGNED, platform, mark, now=now, why=why.explained)
        await _answer(send, 200, {})

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
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
