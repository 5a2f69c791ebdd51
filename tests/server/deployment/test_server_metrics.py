"""What the server shows to Prometheus: also before the first run, between two runs, and after the last."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from server.deployment.folder import CoordinatorFolder
from server.deployment.gate_verdicts import Seen
from server.deployment.provisioning import create_coordinator_folder
from server.deployment.server_metrics import server_registry
from server.monitoring.metrics_file import METRICS, RunMetricsFile
from server.monitoring.run_events import Event, Kind
from tests.server.conftest import tally_of


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    return create_coordinator_folder(
        tmp_path / "made", host="localhost", name="spring", port=8000, control_port=8001, listen="127.0.0.1"
    )


def run_of(coordinator: CoordinatorFolder, name: str, *, rounds: int, age: float = 0.0) -> Path:
    folder = coordinator.run(name)
    folder.mkdir(parents=True)
    watch = RunMetricsFile(folder)
    for round_ in range(1, rounds + 1):
        watch(Event(kind=Kind.ROUND, round=round_, text="x", tallies={"shop": tally_of("shop", epsilon=2.5, bytes_up=7)}))
    when = time.time() - age
    os.utime(folder / METRICS, (when, when))
    return folder


def test_the_server_is_there_without_a_run(coordinator: CoordinatorFolder) -> None:
    registry = server_registry(coordinator, seen={})
    assert registry.get_sample_value("fedfuse_platforms_approved") == 0
    assert (registry.get_sample_value("fedfuse_certificate_days") or 0) > 300
    assert registry.get_sample_value("fedfuse_round") is None
    assert registry.get_sample_value("process_start_time_seconds")


def test_a_run_is_shown_when_its_process_has_gone_and_until_the_next_one(coordinator: CoordinatorFolder) -> None:
    registry = server_registry(coordinator, seen={})
    run_of(coordinator, "first", rounds=2, age=100.0)
    assert registry.get_sample_value("fedfuse_round") == 2
    assert registry.get_sample_value("fedfuse_rounds_total") == 2
    assert registry.get_sample_value("fedfuse_bytes_total", {"platform": "shop", "direction": "up"}) == 7
    assert registry.get_sample_value("fedfuse_epsilon", {"platform": "shop"}) == 2.5
    second = run_of(coordinator, "second", rounds=1)
    assert registry.get_sample_value("fedfuse_round") == 1
    assert b"fedfuse_phase_seconds_bucket" in generate_latest(registry)
    (second / METRICS).write_bytes(b"\x00 torn {")
    assert registry.get_sample_value("fedfuse_round") is None
    assert registry.get_sample_value("fedfuse_platforms_approved") == 0


def test_strangers_names_fill_no_registry(coordinator: CoordinatorFolder) -> None:
    from server.deployment.approved_platforms import Platforms
    from tests.server.deployment.test_provisioning import application

    Platforms(coordinator.platforms).approve(application(coordinator.folder, "shop"))
    seen = {name: Seen(last=5.0) for name in ("shop", "key SHA256:x")}
    shown = generate_latest(server_registry(coordinator, seen=seen)).decode()
    assert 'fedfuse_platform_last_request_timestamp_seconds{platform="shop"} 5.0' in shown and "SHA256" not in shown
