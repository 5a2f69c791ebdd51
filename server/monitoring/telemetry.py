"""A run as its operators watch it: log lines and Prometheus metrics, both made of the events that `run_federation` tells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.monitoring.run_events import Event, Kind, Watcher
from shared.base.logs import tell
from shared.base.prometheus import start_at_nought
from shared.protocol.messages import Reason

log = logging.getLogger("fedfuse.run")

_LEVELS = {
    Kind.REFUSED: logging.WARNING,
    Kind.FAILED: logging.WARNING,
    Kind.SILENT: logging.WARNING,
    Kind.DROPPED: logging.WARNING,
    Kind.LEFT: logging.WARNING,
    Kind.ABANDONED: logging.WARNING,
    Kind.LOST: logging.WARNING,
    Kind.ANSWERED: logging.DEBUG,
}
_SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
# What becomes of one answer; the other kinds tell of the run.
_OUTCOMES = (Kind.ANSWERED, Kind.REFUSED, Kind.FAILED, Kind.SILENT, Kind.DROPPED, Kind.LATE)


def together(*watchers: Watcher | None) -> Watcher:
    """One watcher that calls several; None is left out."""
    told = [watcher for watcher in watchers if watcher is not None]

    def watch(event: Event) -> None:
        for watcher in told:
            watcher(event)

    return watch


def log_events(run: str) -> Watcher:
    """A watcher that writes every event of the run as a log line."""

    def watch(event: Event) -> None:
        facts: dict[str, str | int] = {"run": run, "round": event.round}
        if event.platform:
            facts["platform"] = event.platform
        tell(log, str(event.kind), "%s", event.text, level=_LEVELS.get(event.kind, logging.INFO), **facts)

    return watch


class RunMetrics:
    """A watcher that keeps a run's Prometheus metrics.

    Platforms appear by name only once they have joined: a node that says it is somebody cannot fill the registry with names.

    Args:
        clock: Seconds that only grow; a test gives its own.
    """

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._mark = clock, clock()
        self._sent: dict[tuple[str, str], int] = {}
        self._round = Gauge("fedfuse_round", "Last round that is over, and checkpointed", registry=registry)
        self._rounds = Counter("fedfuse_rounds", "Rounds finished by this process", registry=registry)
        self._platforms = Gauge("fedfuse_platforms", "Platforms that have joined and not left", registry=registry)
        self._answers = Counter("fedfuse_answers", "What became of requests", ["outcome"], registry=registry)
        self._refusals = Counter("fedfuse_refusals", "Refusals by the platforms' word for why", ["reason"], registry=registry)
        self._left = Counter("fedfuse_platforms_left", "Platforms that left for good", registry=registry)
        self._bytes = Counter(
            "fedfuse_bytes", "Bytes of messages before Flower's framing", ["platform", "direction"], registry=registry
        )
        self._epsilon = Gauge("fedfuse_epsilon", "Epsilon spent, as the platform says", ["platform"], registry=registry)
        self._phases = Histogram("fedfuse_phase_seconds", "Time of a whole phase", ["phase"], buckets=_SECONDS, registry=registry)
        self._ended = Gauge(
            "fedfuse_published_timestamp_seconds", "When the model was last written, 0 if not yet", registry=registry
        )
        self._here: set[str] = set()
        start_at_nought(self._answers, _OUTCOMES)
        start_at_nought(self._refusals, Reason)

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if event.kind in _OUTCOMES:
            self._answers.labels(outcome=str(event.kind)).inc()
        if event.kind is Kind.REFUSED and event.reason is not None:
            self._refusals.labels(reason=str(event.reason)).inc()
        if event.kind is Kind.JOINED:
            self._here.add(event.platform)
        elif event.kind is Kind.LEFT:
            self._here.discard(event.platform)
            self._left.inc()
        elif event.kind is Kind.ROUND:
            self._rounds.inc()
            self._phase("train")
        elif event.kind is Kind.EVALUATED:
            self._phase("evaluate")
        elif event.kind is Kind.PUBLISHED:
            self._phase("publish")
            self._ended.set_to_current_time()
        if event.kind is Kind.RESUMED or event.kind in (Kind.ROUND, Kind.LOST):
            self._round.set(event.round)
        self._platforms.set(len(self._here))
        for platform, tally in event.tallies.items():
            self._count(platform, "up", tally.bytes_up)
            self._count(platform, "down", tally.bytes_down)
            self._epsilon.labels(platform=platform).set(tally.epsilon)

    def _phase(self, name: str) -> None:
        now = self._clock()
        self._phases.labels(phase=name).observe(now - self._mark)
        self._mark = now

    def _count(self, platform: str, direction: str, total: int) -> None:
        # A tally is the run's whole sum; a counter wants what is new. A resumed run begins with what is in its checkpoint.
        before = self._sent.get((platform, direction), 0)
        self._bytes.labels(platform=platform, direction=direction).inc(max(0, total - before))
        self._sent[platform, direction] = max(total, before)
