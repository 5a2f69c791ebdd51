"""A stage for deployments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.deploy.stage import Stage, csv
from tests.support.small_platform import WORDS


@pytest.fixture
def stage(tmp_path: Path, tiny_bert: str) -> Iterator[Stage]:
    made = Stage(tmp_path, backbone=tiny_bert)
    yield made
    made.close()


@pytest.fixture
def small_shop(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a small shop's tables under a name, and returns their folder."""

    def write(name: str, *, users: int = 30, items: int = 12) -> Path:
        random = np.random.default_rng(sum(name.encode()))
        folder = tmp_path / "data" / name
        rows = [
            (f"u{u}", f"i{i}", 1_700_000_000 + 1000 * u + n)
            for u in range(users)
            for n, i in enumerate(random.permutation(items)[:5])
        ]
        csv(folder / "events.csv", "user,item,time", rows)
        csv(
            folder / "items.csv",
            "item,title",
            [(f"i{i}", f"{WORDS[i % len(WORDS)]} {WORDS[3 * i % len(WORDS)]} {i}") for i in range(items)],
        )
        return folder

    return write
