"""A coordinator's folder, and runs that are written down in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.deployment.folder import CoordinatorFolder
from server.deployment.launch import Launch, record
from server.deployment.provisioning import create_coordinator_folder
from shared.base.settings import build


@pytest.fixture
def coordinator(tmp_path: Path) -> CoordinatorFolder:
    folder = tmp_path / "coordinator"
    return create_coordinator_folder(folder, host="127.0.0.1", name="spring", port=8000, control_port=1, listen="127.0.0.1")


@pytest.fixture
def planned(coordinator: CoordinatorFolder) -> Callable[..., Launch]:
    """Writes down a run of that name, which nobody has started."""

    def plan(run: str, values: dict[str, Any] | None = None) -> Launch:
        launch = Launch(coordinator=coordinator, run=run, settings=build(values or {}, where="a test"))
        record(launch)
        return launch

    return plan
