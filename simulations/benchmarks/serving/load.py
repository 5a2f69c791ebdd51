"""An open load: requests at the times of a Poisson process, whether or not those before are answered.

A closed loop would ask less while the server is slow, and so hide its worst moments ("coordinated omission", Tene 2013). Latency
is counted from the time at which a request was due.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_HEAD = (
    "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
    "content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
)


@dataclass(frozen=True, kw_only=True)
class LoadAnswer:
    """One request.

    Args:
        late: Milliseconds from when it was due to its last byte.
        status: Of HTTP; 0 where the connection was closed without an answer.
    """

    late: float
    status: int


async def open_load(
    port: int, token: str, bodies: Sequence[tuple[str, dict[str, Any]]], *, rate: float, seed: int = 0
) -> list[LoadAnswer]:
    """Send requests at so many a second, in the mean.

    Args:
        bodies: Path and body of each.
        rate: Requests a second.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(bodies))
    due = time.perf_counter() + 0.5 + np.cumsum(gaps)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one(path: str, body: dict[str, Any], at: float) -> LoadAnswer:
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps(body).encode()
        writer.write(_HEAD.format(path=path, port=port, token=token, size=len(data)).encode() + data)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return LoadAnswer(late=1e3 * (time.perf_counter() - at), status=0)
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        await reader.readexactly(int(fields[b"content-length"]))
        late = time.perf_counter() - at
        if fields.get(b"connection") == b"close":
            writer.close()
        else:
            idle.append((reader, writer))
        return LoadAnswer(late=1e3 * late, status=int(head.split(b" ", 2)[1]))

    found = await asyncio.gather(*(one(path, body, at) for (path, body), at in zip(bodies, due.tolist(), strict=True)))
    for _, writer in idle:
        writer.close()
    return list(found)
