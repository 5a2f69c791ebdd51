"""The benchmark of serving: a small one, from the drawn model to the figures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from simulations.benchmarks.serving.latency import serving_latency
from simulations.benchmarks.serving.load import open_load


@pytest.mark.slow
def test_it_measures_what_it_asked(tmp_path: Path) -> None:
    found = serving_latency(tmp_path, 1500, 60, rate=20.0, seconds=1.0)
    assert found["requests"] == 20 and found["refused"] == 0
    assert 0 < found["p50 ms"] <= found["p99 ms"] and found["processor ms a request"] > 0


def test_latency_counts_from_when_a_request_was_due() -> None:
    """A server that stalls for half a second is late for all that were due meanwhile, not for one."""

    async def stalled() -> list[float]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        until = asyncio.get_running_loop().time() + 1.5
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            found = await open_load(server.sockets[0].getsockname()[1], "t", [("/x", {})] * 20, rate=200.0)
        return [one.late for one in found]

    late = asyncio.run(stalled())
    assert sum(one > 300 for one in late) >= 10
