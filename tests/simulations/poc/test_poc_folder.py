"""A proof of concept's folder: no other folder is emptied, and two commands do not work on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedfuse
from shared.base.errors import InputError
from simulations.poc.poc_folder import PocFolder


def test_only_what_an_interrupted_start_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(InputError, match="no proof of concept's"):
        PocFolder.at(tmp_path / "mine").begin()
    assert (tmp_path / "mine" / "notes.txt").exists()
    place = PocFolder.at(tmp_path / "poc")
    with place.alone():
        place.begin()
        (place.root / "coordinator").mkdir()
        (place.root / "x.log").touch()
        (place.root / "link").symlink_to(tmp_path / "mine")
        place.begin()
    assert sorted(path.name for path in place.root.iterdir()) == [".lock", "poc.json"]
    assert (tmp_path / "mine" / "notes.txt").exists() and not place.complete
    assert place.root.stat().st_mode & 0o777 == 0o700


def test_one_command_at_a_time(tmp_path: Path) -> None:
    place = PocFolder.at(tmp_path)
    code = "import sys, time; from pathlib import Path; from simulations.poc.poc_folder import PocFolder\n"
    code += "with PocFolder.at(Path(sys.argv[1])).alone(): print('held', flush=True); time.sleep(300)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert place.holder() == other.pid
        with pytest.raises(InputError, match=str(other.pid)), place.alone():
            pass
    finally:
        other.kill()  # the lock goes with it
        other.communicate()
    assert place.holder() is None
    with place.alone():
        pass


def test_a_folder_without_one_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fedfuse poc"):
        PocFolder.at(tmp_path).record()


def test_one_that_was_moved_is_not_started(tmp_path: Path) -> None:
    """Its workers did not find their tables, after `fedfuse poc` had said that it runs."""
    made, moved = tmp_path / "made", tmp_path / "moved here"
    place = PocFolder.at(made)
    place.begin()
    place.write(complete=True, user="c1")
    (tmp_path / "link").symlink_to(made)
    for same in (place, PocFolder.at(tmp_path / "link"), PocFolder.at(tmp_path / "mine" / ".." / "made")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        same.require_unmoved()
    made.rename(moved)
    with pytest.raises(InputError) as refused:
        CliRunner().invoke(fedfuse.app, ["poc", "--dir", str(moved)], catch_exceptions=False)
    assert f"was made as {made}" in refused.value.found and f"mv '{moved}' {made}" in refused.value.do
    assert PocFolder.at(moved).complete  # nothing was made anew
    moved.rename(made)
    place.require_unmoved()


@pytest.mark.parametrize("command", ["status", "stop"])
def test_the_folder_may_be_named_before_or_after_the_command(tmp_path: Path, command: str) -> None:
    other = str(tmp_path / "other")
    for words in (["--dir", other, command], [command, "--dir", other], ["--dir", "nowhere", command, "--dir", other]):
        with pytest.raises(InputError) as refused:
            CliRunner().invoke(fedfuse.app, ["poc", *words], catch_exceptions=False)
        assert refused.value.where == other
