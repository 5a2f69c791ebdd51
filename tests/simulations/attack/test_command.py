"""`fedfuse audit attack`, as somebody types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.privacy.mechanism import CountMechanism
from fedfuse import app
from simulations.worlds.generated import write_world


def test_a_verdict_and_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, run = tmp_path / "world", CliRunner().invoke
    write_world(world, seed=2, scale=0.3)
    sound = run(app, ["audit", "attack", str(world), "--epsilon", "3", "--json"])
    values = json.loads(sound.stdout)
    assert sound.exit_code == 0 and not values["refuted"] and set(values["views"]) == {"white box", "black box"}
    with monkeypatch.context() as patched:
        patched.setattr(CountMechanism, "privatise", lambda self, sums, random: sums.vector())
        broken = run(app, ["audit", "attack", str(world), "--epsilon", "3"])
    assert broken.exit_code == 1 and "REFUTED" in broken.stdout.replace("\n", " ")
    for wrong in (["nowhere"], [str(world), "--platform", "nobody"], [str(world), "--set", "rounds=1", "--noise", "distributed"]):
        found = run(app, ["audit", "attack", *wrong])
        assert (found.exit_code == 2 and found.exception is None) or isinstance(found.exception, SystemExit), wrong
        assert "cannot tell" in found.output and "Traceback" not in found.output
