"""What the coordinator's server shows to Prometheus as long as it runs: itself, its platforms, and the newest run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.deployment.approved_platforms import Platforms
from server.deployment.folder import CoordinatorFolder
from server.deployment.gate_verdicts import Seen
from server.monitoring.metrics_file import NewestRun
from shared.base.errors import FedfuseError
from shared.base.prometheus import new_registry


class Federation(Collector):
    """The server's certificate and its platforms, looked up at every scrape.

    Args:
        seen: Platform, or a stranger's key, -> what the gate saw of it.
        days: Days that the certificate holds.
    """

    def __init__(self, platforms: Platforms, *, seen: Mapping[str, Seen], days: Callable[[], float]) -> None:
        self._platforms, self._seen, self._days = platforms, seen, days

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """As it is now; what cannot be read is left out, and its own command says why."""
        found: list[Metric] = []
        try:
            left = self._days()
            found.append(GaugeMetricFamily("fedfuse_certificate_days", "Days that the server's certificate holds", value=left))
        except FedfuseError:
            pass
        try:
            approved = self._platforms.approved()
        except FedfuseError:
            return found
        found.append(GaugeMetricFamily("fedfuse_platforms_approved", "Platforms that may take part", value=len(approved)))
        last = GaugeMetricFamily(
            "fedfuse_platform_last_request_timestamp_seconds", "When a platform was last let through", labels=["platform"]
        )
        seen = dict(self._seen)  # strangers are in it, too: names of their choice must not fill the registry
        for one in approved:
            if one.name in seen and seen[one.name].last:
                last.add_metric([one.name], seen[one.name].last)
        return [*found, last]


def server_registry(coordinator: CoordinatorFolder, *, seen: Mapping[str, Seen]) -> CollectorRegistry:
    """Everything that is shown on `metrics_port`."""
    registry = new_registry()
    registry.register(Federation(Platforms(coordinator.platforms), seen=seen, days=coordinator.certificates.days_left))
    registry.register(NewestRun(coordinator.folder / "runs"))
    return registry
