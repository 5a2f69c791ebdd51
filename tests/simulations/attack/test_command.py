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
    for wrong in (["nowhere"], [str(world), "--platform", "nobody"], [str(world), "--set", "preferences.items=0"]):
        found = run(app, ["audit", "attack", *wrong])
        assert (found.exit_code == 2 and found.exception is None) or isinstance(found.exception, SystemExit), wrong
        assert "cannot tell" in found.output and "Traceback" not in found.output


def test_what_it_leaves_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out` keeps the run and the result, and the report of that folder shows it; a refuted claim makes it unsound."""
    world, run = tmp_path / "world", CliRunner().invoke
    write_world(world, seed=2, scale=0.3)
    options = ["--epsilon", "3", "--out"]
    attacked = run(app, ["audit", "attack", str(world), *options, str(tmp_path / "sound")])
    assert attacked.exit_code == 0, attacked.output
    kept = json.loads((tmp_path / "sound" / "attack.json").read_text())
    assert kept["release"] == "preferences" and kept["confidence"] == 0.95 and len(kept["views"]["white box"]["roc"]) > 20
    reported = run(app, ["report", str(tmp_path / "sound"), "--json"])
    assert reported.exit_code == 0, reported.output
    shown = json.loads(reported.stdout)["attack"]
    assert (
        shown["claim"] == kept["claim"]
        and not shown["refuted"]
        and {one["attacker"] for one in shown["views"]} == set(kept["views"])
    )
    for one in shown["views"]:
        of = kept["views"][one["attacker"]]
        assert (one["bound"], one["area"], one["low"], one["canaries"]) == (of["bound"], of["area"], of["low"], of["canaries"])
        assert one["roc"] == of["roc"]
    again = run(app, ["audit", "attack", str(world), *options, str(tmp_path / "sound")])
    assert again.exit_code == 2 and "Traceback" not in again.output  # a run is never written over
    with monkeypatch.context() as patched:
        patched.setattr(CountMechanism, "privatise", lambda self, sums, random: sums.vector())
        broken = run(app, ["audit", "attack", str(world), *options, str(tmp_path / "broken")])
    reported = run(app, ["report", str(tmp_path / "broken")])
    assert broken.exit_code == 1 and reported.exit_code == 1 and "REFUTED by attack" in " ".join(reported.stdout.split())
