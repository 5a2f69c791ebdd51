"""A simulation's folder: what is left of a run that is refused, and what must be the same to go on with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.base.errors import FedfuseError, InputError, StorageError
from shared.base.settings import Settings
from simulations.run import Simulation, run_simulation
from simulations.run_folder import RECORD, RunFolder, recorded_run
from simulations.worlds.world import open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]


def test_a_refused_start_leaves_nothing(write_platform: Write, tiny_settings: Make, tmp_path: Path) -> None:
    world = open_world(write_platform("shop").parent)
    out = tmp_path / "run"
    with pytest.raises(FedfuseError, match="epsilon"):
        run_simulation(Simulation(world=world, settings=tiny_settings(privacy={"epsilon": 0.01}), out=out))
    assert not out.exists()


def test_runs_that_begin_within_one_second_have_names_of_their_own(
    tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.run_folder.time.time", lambda: 1_795_906_721.5)
    runs = {RunFolder(tmp_path / name, world=tmp_path, settings=tiny_settings()).run for name in ("first", "second", "third")}
    assert len(runs) == 3 and all(run.startswith("simulation-1795906721-") for run in runs)


def test_a_refused_start_leaves_the_world_that_lies_in_its_folder(tiny_settings: Make, tmp_path: Path) -> None:
    world = tmp_path / "run" / "world"
    world.mkdir(parents=True)
    (world / "shop.toml").write_text("mine")
    folder = RunFolder(tmp_path / "run", world=world, settings=tiny_settings())
    (tmp_path / "run" / "state" / "shop").mkdir(parents=True)
    folder.clear()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["world"]
    assert (world / "shop.toml").read_text() == "mine"


def test_a_run_that_was_charged_stays(tiny_settings: Make, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", world=tmp_path, settings=tiny_settings())
    ledger = tmp_path / "run" / "ledger" / "shop.jsonl"
    ledger.parent.mkdir()
    ledger.write_text("header\n")
    other = tmp_path / "other"
    RunFolder(other, world=tmp_path, settings=tiny_settings()).clear()
    assert not other.exists()
    ledger.write_text("header\ncharge\n")
    folder.clear()
    assert ledger.exists() and (tmp_path / "run" / RECORD).exists()


def test_all_sources_are_read_before_anything_is_encoded(
    write_platform: Write, tiny_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_platform("a")
    path = write_platform("z")
    path.write_text(path.read_text().replace('.csv"', '-gone.csv"'))
    monkeypatch.setattr("simulations.run.prepare", lambda *facts, **more: pytest.fail("encoded"))
    with pytest.raises(InputError, match="gone"):
        run_simulation(Simulation(world=open_world(path.parent), settings=tiny_settings(), out=tmp_path / "run"))


@pytest.mark.parametrize("record", ["", "run = 5", 'run = "a"', 'run = "a"\nworld = "w"', "not toml"])
def test_a_damaged_record_is_said(tmp_path: Path, record: str) -> None:
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(StorageError, match="record"):
        recorded_run(tmp_path)
