"""Server and nodes of one run of Flower's engine find the same places, and two runs find different ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.base.engine_folders import engine_folders


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    out = tmp_path / "fedfuse" / "run-7"
    assert engine_folders({}, 7) == engine_folders({"world": "", "out": ""}, 7) == (out / "world", out)
    assert engine_folders({"world": "/w"}, 7) == (Path("/w"), out)
    assert engine_folders({"out": "/o"}, 7) == (Path("/o/world"), Path("/o"))
    assert engine_folders({"world": "/w", "out": "/o"}, 8) == (Path("/w"), Path("/o"))
    assert engine_folders({}, 8) != engine_folders({}, 7)
