"""A coordinator's folder on which commands are called, with platforms that were let in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from server.deployment.folder import CoordinatorFolder, open_coordinator
from tests.server.deployment.test_provisioning import application
from tests.support.called_command import called


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders to be copied: `new`, and `approved`, with three platforms."""
    place = tmp_path_factory.mktemp("coordinators")
    made = called("init", "server", place / "new", "--host", "fed.example.org", "--name", "spring", "--control-port", 1)
    assert made.returncode == 0, made.stderr
    shutil.copytree(place / "new", place / "approved")
    for name in ("news", "shop", "video"):
        (place / f"{name}.toml").write_text(application(place, name).text())
        done = called("approve", name, place / f"{name}.toml", "--yes", "--server", place / "approved")
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def coordinator(templates: Path, tmp_path: Path) -> CoordinatorFolder:
    """Of a federation without platforms."""
    return open_coordinator(Path(shutil.copytree(templates / "new", tmp_path / "made")))


@pytest.fixture
def approved(templates: Path, tmp_path: Path) -> CoordinatorFolder:
    """Of one with three."""
    return open_coordinator(Path(shutil.copytree(templates / "approved", tmp_path / "approved")))
