"""Where a run of Flower's own engine (`flwr run`) reads its world and keeps its files: server and nodes find the same places."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def engine_folders(config: Mapping[str, Any], run_id: int) -> tuple[Path, Path]:
    """(World, folder of the run): what the run's configuration names, or places of the run's own below Flower's home.

    Args:
        config: The run's configuration; `world` and `out` are '' where nothing is named.
        run_id: Flower's.
    """
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    out = Path(str(config.get("out", "")) or home.absolute() / "fedfuse" / f"run-{run_id}")
    return Path(str(config.get("world", "")) or out / "world"), out
