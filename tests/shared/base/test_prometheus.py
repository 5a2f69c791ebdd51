"""Metrics are served on this machine alone, and stop on request."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import Counter

from shared.base.errors import InputError
from shared.base.prometheus import new_registry, serve_metrics


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_what_is_counted_is_served() -> None:
    registry = new_registry()
    counter = Counter("fedfuse_things", "Things", registry=registry)
    with serve_metrics(registry, port=0) as server:
        counter.inc(3)
        text = get(server.port)
        assert "fedfuse_things_total 3.0" in text and "process_resident_memory_bytes" in text
        assert server._server.server_address[0] == "127.0.0.1"
    with pytest.raises(urllib.error.URLError):
        get(server.port)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be served") as caught:
            serve_metrics(new_registry(), port=taken.getsockname()[1])
    assert "--metrics-port" in caught.value.do
    for port in (-1, 70_000):
        with pytest.raises(InputError):
            serve_metrics(new_registry(), port=port)
    with pytest.raises(InputError):
        serve_metrics(new_registry(), port=0, host="203.0.113.1")


def test_two_registries_do_not_mix() -> None:
    one, other = new_registry(), new_registry()
    Counter("fedfuse_things", "Things", registry=one).inc()
    Counter("fedfuse_things", "Things", registry=other)
    assert one.get_sample_value("fedfuse_things_total") == 1.0
    assert other.get_sample_value("fedfuse_things_total") == 0.0
