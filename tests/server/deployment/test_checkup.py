"""`fedfuse doctor` at a coordinator: what is wrong is found, one thing at a time."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.deployment.authority_rotation import begin_rotation
from server.deployment.checkup import check_coordinator, check_default_ports
from server.deployment.folder import CoordinatorFolder
from server.deployment.provisioning import create_coordinator_folder
from shared.doctor.findings import Finding, Level
from shared.doctor.places import check_certificate
from simulations.local_deployment import free_ports


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    port, control = free_ports(2)
    return create_coordinator_folder(
        tmp_path / "coordinator", host="127.0.0.1", name="spring", port=port, control_port=control, listen="127.0.0.1"
    )


def of(coordinator: CoordinatorFolder, what: str) -> list[Finding]:
    return [one for one in check_coordinator(coordinator.folder) if one.what == what]


def test_a_new_one_is_well(coordinator: CoordinatorFolder) -> None:
    found = list(check_coordinator(coordinator.folder))
    assert [one.what for one in found if one.level is Level.ERROR] == []
    assert {one.what for one in found if one.level is Level.WARNING} == {"ports", "platforms"}  # not started, nobody invited


def no_rights(coordinator: CoordinatorFolder) -> None:
    coordinator.federation_key.chmod(0o644)


def no_key(coordinator: CoordinatorFolder) -> None:
    coordinator.model_key.unlink()


def open_folder(coordinator: CoordinatorFolder) -> None:
    coordinator.federation_key.parent.chmod(0o777)


def expired(coordinator: CoordinatorFolder) -> None:
    coordinator.certificates.issue("127.0.0.1", days=-1)


def no_certificate(coordinator: CoordinatorFolder) -> None:
    coordinator.certificates.server.write_text("no certificate")


def damaged_list(coordinator: CoordinatorFolder) -> None:
    coordinator.platforms.write_text("{")


@pytest.mark.parametrize(
    ("harm", "what", "says"),
    [
        (no_rights, "keys", "0644"),
        (no_key, "keys", "is missing"),
        (open_folder, "rights", "may write into"),
        (expired, "certificate", "expired"),
        (no_certificate, "certificate", "cannot be read"),
        (damaged_list, "platforms", "cannot be read"),
    ],
)
def test_what_is_in_the_way(
    coordinator: CoordinatorFolder, harm: Callable[[CoordinatorFolder], None], what: str, says: str
) -> None:
    harm(coordinator)
    (found,) = [one for one in of(coordinator, what) if one.level is Level.ERROR]
    assert says in found.found and found.cure


def test_the_authoritys_key_may_be_kept_elsewhere(coordinator: CoordinatorFolder) -> None:
    coordinator.certificates.authority_key.unlink()  # docs/deploy.md, "Sharp edges"
    found = of(coordinator, "keys")
    assert {one.level for one in found} == {Level.OK}
    assert any("authority's key is kept elsewhere" in one.found for one in found)


def test_a_change_of_the_authority_is_not_forgotten(coordinator: CoordinatorFolder) -> None:
    begin_rotation(coordinator)
    (found,) = [one for one in of(coordinator, "certificate") if one.level is Level.WARNING]
    assert "begun" in found.found and "authority status" in found.cure
    coordinator.certificates.next_authority_key.chmod(0o644)
    (found,) = [one for one in of(coordinator, "keys") if one.level is Level.ERROR]
    assert "next authority" in found.found


def test_a_mistake_in_its_file(coordinator: CoordinatorFolder) -> None:
    path = coordinator.folder / "server.toml"
    path.write_text(path.read_text().replace("port = ", "prot = ", 1))
    (found,) = check_coordinator(coordinator.folder)
    assert found.level is Level.ERROR and "prot" in found.found


def test_a_port_that_is_taken(coordinator: CoordinatorFolder) -> None:
    with socket.create_server(("127.0.0.1", coordinator.file.port)):
        (found,) = of(coordinator, "ports")
    assert found.level is Level.ERROR and str(coordinator.file.port) in found.found and "port in server.toml" in found.cure
    (free,) = of(coordinator, "ports")
    assert free.level is Level.WARNING and "does not run" in free.found


def test_default_ports_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.deployment.checkup.port_is_free", lambda host, port: port != 8001)
    (found,) = check_default_ports()
    assert "8001" in found.found and "--control-port" in found.cure


def test_a_run_whose_process_is_gone(coordinator: CoordinatorFolder) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = coordinator.run("first")
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"state": "running", "process": gone.pid, "round": 3}))
    (found,) = of(coordinator, "runs")
    assert found.level is Level.WARNING and "round 3" in found.found and "--resume first" in found.cure


def test_clocks(coordinator: CoordinatorFolder) -> None:
    path, now = coordinator.certificates.server, datetime.now(UTC)
    levels = {days: check_certificate("it", path, cure="x", now=now + timedelta(days=days)) for days in (-9, 0, 340, 366)}
    assert [one.level for one in levels.values()] == [Level.ERROR, Level.OK, Level.WARNING, Level.ERROR]
    assert levels[-9].what == "clock"
