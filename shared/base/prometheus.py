"""Prometheus metrics over HTTP, for the operator's own monitoring: on this machine alone unless told otherwise.

What is measured is public or leaves the process anyway; still, an operator decides who may look.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, PlatformCollector, ProcessCollector, start_http_server

from shared.base.errors import InputError

LOOPBACK = "127.0.0.1"


def new_registry() -> CollectorRegistry:
    """A registry with what every process has: memory, processor time, open files."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def start_at_nought(counter: Counter, values: Iterable[object]) -> None:
    """Have a counter's series there from the start: Prometheus sees no increase in one that begins at 1.

    Args:
        values: All that its one label may be.
    """
    for value in values:
        counter.labels(str(value))


class MetricsServer:
    """A server that is running; use as a context manager, or `close` it."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server, self._thread = server, thread

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def serve_metrics(registry: CollectorRegistry, *, port: int, host: str = LOOPBACK) -> MetricsServer:
    """Serve what is in `registry` at http://host:port/metrics.

    Args:
        port: 0 for any free one.
        host: Who may reach it: the default is this machine.

    Raises:
        InputError: the address is taken, or none of this machine's.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such port"
        raise InputError(
            f"metrics cannot be served ({reason})", where=f"{host}:{port}", do="choose another --metrics-port, or leave it out"
        ) from None
    return MetricsServer(server, thread)
