"""A registry, or the folder beside it, that was put back to an earlier day: `fedfuse doctor` says which."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.deployment.checkup import check_coordinator
from server.deployment.folder import CoordinatorFolder, open_coordinator
from server.operators import log_writer
from shared.doctor.findings import Finding, Level
from shared.protocol.keys import load_ed25519
from tests.support.called_command import called


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    made = called("init", "server", tmp_path / "coordinator", "--host", "h", "--name", "spring")
    assert made.returncode == 0, made.stderr
    path = tmp_path / "coordinator" / "server.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("registry")]
    path.write_text("\n".join([*lines, f'registry = "{tmp_path / "registry"}"']) + "\n")
    return open_coordinator(tmp_path / "coordinator")


@pytest.fixture
def publish(coordinator: CoordinatorFolder, make_run: Callable[..., Path], tmp_path: Path) -> Callable[[str], None]:
    def make(name: str) -> None:
        moved = coordinator.run(name)
        moved.parent.mkdir(exist_ok=True)
        shutil.move(make_run(name, seed=len(name)), moved)
        done = called("publish", moved, coordinator.file.registry, "--key", coordinator.model_key)
        assert done.returncode == 0, done.stderr

    return make


def said(coordinator: CoordinatorFolder) -> Finding:
    (found,) = [one for one in check_coordinator(coordinator.folder) if one.what == "registry"]
    return found


def test_what_was_published_is_there(coordinator: CoordinatorFolder, publish: Callable[[str], None]) -> None:
    assert said(coordinator).found == "empty"
    publish("spring-1")
    publish("spring-22")
    found = said(coordinator)
    assert found.level is Level.OK and "version 2 of run spring-22" in found.found


def test_an_older_registry(coordinator: CoordinatorFolder, publish: Callable[[str], None], tmp_path: Path) -> None:
    publish("spring-1")
    shutil.copytree(tmp_path / "registry", tmp_path / "backup")
    publish("spring-22")
    shutil.rmtree(tmp_path / "registry")
    shutil.copytree(tmp_path / "backup", tmp_path / "registry")
    found = said(coordinator)
    assert found.level is Level.ERROR and "newest version is 1, and run spring-22 became version 2" in found.found
    # It went on, and another model is version 2 now.
    shutil.move(coordinator.run("spring-22"), tmp_path / "aside")
    publish("spring-333")
    shutil.move(tmp_path / "aside", coordinator.run("spring-22"))
    (coordinator.run("spring-333") / "published.json").unlink()
    found = said(coordinator)
    assert found.level is Level.ERROR and "version 2 is not what run spring-22 published" in found.found


def test_an_older_folder_beside_the_newest_registry(
    coordinator: CoordinatorFolder, publish: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("spring-1")
    shutil.rmtree(coordinator.folder / "runs")
    now = log_writer.now()
    for year, level in ((int(now[:4]) + 1, Level.OK), (int(now[:4]) - 1, Level.ERROR)):
        # A log that begins after the version was made can say nothing of it, as where an earlier Fedfuse made the folder.
        shutil.rmtree(coordinator.operators)
        monkeypatch.setattr(log_writer, "now", lambda year=year: f"{year}{now[4:]}")
        log_writer.begin_log(coordinator.operators, load_ed25519(coordinator.operator_key), federation="spring")
        assert said(coordinator).level is level
    found = said(coordinator).found
    assert "version 1 is of run spring-1" in found and "no operator's line speaks" in found


def test_a_registry_that_cannot_be_read(coordinator: CoordinatorFolder, publish: Callable[[str], None], tmp_path: Path) -> None:
    publish("spring-1")
    (tmp_path / "registry" / "manifests" / "000001.json").write_text("{}")
    assert said(coordinator).level is Level.ERROR
    path = coordinator.folder / "server.toml"
    path.write_text(path.read_text().replace(coordinator.file.registry, ""))
    assert not [one for one in check_coordinator(coordinator.folder) if one.what == "registry"]
