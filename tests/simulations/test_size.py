"""The benchmark of size: each measurement once, in a process of its own, and what it took as it was."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from simulations.benchmarks import size


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "LEAST_ITEMS", 200)


@pytest.mark.slow
def test_measurements_run_in_processes_of_their_own_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path), "--users", "50", "--only", "preferences", "--json"]
    size.main(words)
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == ["new", "preferences"]
    for one in found:
        assert one["wall"] > 0 and one["processor"] > 0 and one["peak"] > 20e6 and one["users"] == 50
    (tmp_path / "50" / "world" / "shop.toml").unlink()
    size.main(words)
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.slow
def test_a_measurement_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="check of 50 users"):
        size.measured(tmp_path, "check", 50)
    assert not (tmp_path / "check.json").exists()


@pytest.mark.slow
def test_the_commands_are_those_that_people_run(tmp_path: Path) -> None:
    for name in ("new", "own", "one", "all"):
        size.MEASURES[name](tmp_path, 50)
    assert (tmp_path / "everybody.parquet").exists() and list(tmp_path.rglob("recommender-*.safetensors"))


def test_the_table_says_what_each_took() -> None:
    found = [
        size.Measured(users=users, items=1, name=name, wall=2.0, processor=1.5, peak=3_000_000_000, disk=0)
        for users in (100, 1000)
        for name in ("new", "all")
    ]
    shown = io.StringIO()
    Console(file=shown, width=200).print(size.size_table(found))
    assert "2.0 / 1.5 / 3.00 / 0.00 (500 users/s)" in shown.getvalue() and "1,000 users" in shown.getvalue()
