"""A run's metrics in a file of its folder, from which the coordinator's server shows them while no run is active, too.

A run is a process that comes and goes, and a scraper would find nobody most of the time. So it writes, and the server serves.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.monitoring.run_events import Event, Kind
from server.monitoring.telemetry import RunMetrics
from shared.base.atomic_files import write_whole

METRICS = "metrics.prom"
_LARGEST = 16 << 20


class RunMetricsFile:
    """A watcher that keeps a run's metrics in its folder. What it cannot write, it leaves out, as the journal does."""

    def __init__(self, folder: Path) -> None:
        self._path, self._registry = folder / METRICS, CollectorRegistry(auto_describe=True)
        self._metrics = RunMetrics(self._registry)

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        self._metrics(event)
        if event.kind is Kind.ANSWERED:
            return  # one of many; the end of their phase is reported, too
        try:
            write_whole(self._path, generate_latest(self._registry))
        except Exception:  # noqa: BLE001 - what is shown to people must not stop what is done
            return


class NewestRun(Collector):
    """The metrics of the run whose file is the newest.

    Args:
        runs: Folder of the runs' folders.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: there may be no run."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """As they were written last."""
        try:
            newest = max(self._runs.glob(f"*/{METRICS}"), key=lambda path: path.stat().st_mtime_ns, default=None)
            if newest is None or newest.stat().st_size > _LARGEST:
                return ()
            return tuple(text_string_to_metric_families(newest.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return ()  # replaced or removed meanwhile: the next look finds it
