"""A platform's own Prometheus metrics: what it has spent of its budget, what it was asked, how long it took.

They stay on the platform. Nothing in them is of a row: epsilon and steps follow from the plan, the rest is of the machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from shared.base.prometheus import start_at_nought
from shared.protocol.messages import Answer, Reason, Refusal, Released, Request, Summed, Update
from shared.secagg.shared_catalogues import POPULARITY

_GIB = 1 << 30
_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class WorkerMetrics:
    """Keeps a worker's metrics; `client.worker.request_handler.Worker` tells it every answer.

    Args:
        state: The platform's state folder, whose caches are measured when somebody looks.
        budget: Epsilon that the platform may spend.
    """

    def __init__(self, registry: CollectorRegistry, *, state: Path, budget: float) -> None:
        self._answered: set[tuple[str, int]] = set()
        self._epsilon = Gauge("fedfuse_epsilon_spent", "Epsilon that the ledger says is spent", registry=registry)
        Gauge("fedfuse_epsilon_budget", "Epsilon that may be spent", registry=registry).set(budget)
        self._requests = Counter("fedfuse_requests", "Requests by kind, and what they got", ["kind", "answer"], registry=registry)
        self._refusals = Counter("fedfuse_refusals", "Refusals by reason", ["reason"], registry=registry)
        start_at_nought(self._refusals, Reason)
        self._steps = Counter("fedfuse_steps", "Private steps of training that were released", registry=registry)
        self._round = Gauge("fedfuse_round", "Last round that was answered", registry=registry)
        self._seconds = Histogram(
            "fedfuse_request_seconds", "Time to answer a request", ["kind"], buckets=_SECONDS, registry=registry
        )
        cache = Gauge("fedfuse_cache_bytes", "Bytes of caches in the state folder", registry=registry)
        cache.set_function(lambda: _size(state))

    def spent(self, epsilon: float) -> None:
        """Take in what the ledger says before the first answer."""
        self._epsilon.set(epsilon)

    def __call__(self, request: Request, answer: Answer, seconds: float) -> None:
        """Take in an answer that is about to leave."""
        self._requests.labels(kind=request.kind, answer=answer.kind).inc()
        self._seconds.labels(kind=request.kind).observe(seconds)
        if isinstance(answer, Refusal):
            self._refusals.labels(reason=str(answer.reason)).inc()
        if isinstance(answer, Released):
            self._epsilon.set(answer.epsilon)
            self._round.set(answer.round)
        if isinstance(answer, Update | Summed) and answer.round != POPULARITY:
            # A repeated question gets the answer of the first, and costs no step.
            if (request.run, answer.round) not in self._answered:
                self._steps.inc(request.settings.round_steps)
            self._answered.add((request.run, answer.round))


def _size(folder: Path) -> float:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:  # gone while we were looking: a cache is replaced as a whole
                continue
    # In whole gibibytes: to the byte it would follow from the texts of single users, and every user of this machine may read it.
    return float(-(-total // _GIB) * _GIB)
