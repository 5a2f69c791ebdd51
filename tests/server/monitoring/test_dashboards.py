"""The dashboards of Grafana ask for metrics and labels that there are, and for all that Fedfuse shows of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from client.worker.telemetry import WorkerMetrics
from server.deployment.gate_verdicts import Seen
from server.deployment.provisioning import create_coordinator_folder
from server.deployment.server_metrics import server_registry
from server.monitoring.metrics_file import RunMetricsFile
from server.monitoring.run_events import Event, Kind
from shared.base.prometheus import new_registry
from shared.protocol.messages import Reason
from tests.server.conftest import tally_of
from tests.server.deployment.test_provisioning import application

FOLDER = Path(__file__).parents[3] / "shared" / "deploy" / "grafana"
_METRIC = re.compile(r"\b(?:fedfuse|process)_[a-z0-9_]+\b")
_SELECTOR = re.compile(r"\b((?:fedfuse|process)_[a-z0-9_]+)(\{[^}]*\})?")
_BY = re.compile(r"\bby \(([^)]*)\)")
_SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""


def panels(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.json").read_text())["panels"]


def queries(name: str) -> Iterator[tuple[str, str]]:
    """(query, legend)."""
    for panel in panels(name):
        for target in panel.get("targets", []):
            yield target["expr"], target["legendFormat"]


def shown_by(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Sample -> its labels."""
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, dict[str, set[str]]]:
    """What a coordinator and a platform show when everything has happened once."""
    coordinator = create_coordinator_folder(
        tmp_path / "c", host="h", name="spring", port=8000, control_port=8001, listen="127.0.0.1"
    )
    from server.deployment.approved_platforms import Platforms

    Platforms(coordinator.platforms).approve(application(tmp_path, "shop"))
    folder = coordinator.run("first")
    folder.mkdir(parents=True)
    watch = RunMetricsFile(folder)
    watch(Event(kind=Kind.REFUSED, round=1, text="x", platform="shop", reason=Reason.BUDGET))
    watch(Event(kind=Kind.ROUND, round=1, text="x", tallies={"shop": tally_of("shop", bytes_up=1, bytes_down=1)}))
    worker = new_registry()
    metrics = WorkerMetrics(worker, state=tmp_path, budget=8.0)
    metrics._requests.labels(kind="train", answer="update").inc()
    metrics._refusals.labels(reason="budget").inc()
    metrics._seconds.labels(kind="train").observe(1.0)
    return {"coordinator": shown_by(server_registry(coordinator, seen={"shop": Seen(last=5.0)})), "platform": shown_by(worker)}


@pytest.mark.parametrize("name", ["coordinator", "platform"])
def test_what_is_asked_for_is_there(name: str, samples: dict[str, dict[str, set[str]]]) -> None:
    there = samples[name]
    for query, legend in queries(name):
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}"), query
        labels = set().union(*(there.get(metric, {"?"}) for metric in _METRIC.findall(query)))
        asked = {label.strip() for group in _BY.findall(query) for label in group.split(",")}
        asked |= {label for _, selector in _SELECTOR.findall(query) for label in re.findall(r"([a-z_]+)=", selector)}
        kept = asked if _BY.search(query) else labels | _SCRAPED
        assert _METRIC.findall(query) and all(metric in there for metric in _METRIC.findall(query)), query
        assert asked <= labels | _SCRAPED, query
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= kept, (query, legend)


@pytest.mark.parametrize("name", ["coordinator", "platform"])
def test_nothing_of_ours_is_left_out(name: str, samples: dict[str, dict[str, set[str]]]) -> None:
    asked = {metric for query, _ in queries(name) for metric in _METRIC.findall(query)}
    ours = {
        metric
        for metric in samples[name]
        if metric.startswith("fedfuse_") and not metric.endswith(("_created", "_sum", "_count"))
    }
    assert ours - asked == set()


@pytest.mark.parametrize("name", ["coordinator", "platform"])
def test_panels_fill_the_grid_without_overlap_and_say_what_they_are(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    found = panels(name)
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        grid = panel["gridPos"]
        cells = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert not cells & taken and all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"].endswith(".") and panel["datasource"]["uid"] == "${datasource}")


def test_a_dashboard_names_no_data_source_of_anybody(samples: dict[str, dict[str, set[str]]]) -> None:
    for name in samples:
        board = json.loads((FOLDER / f"{name}.json").read_text())
        assert board["uid"] == f"fedfuse-{name}" and "http" not in json.dumps(board)
        (source, machine) = board["templating"]["list"]
        assert (source["type"], source["query"]) == ("datasource", "prometheus")
        assert _METRIC.findall(machine["definition"])[0] in samples[name]
