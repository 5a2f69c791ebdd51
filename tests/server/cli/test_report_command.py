"""`fedfuse report`: a verdict and an exit code for every input, and three files where there is anything to report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from server.cli.report import report_command
from server.report.written import JSON, PAGE, YAML

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call() -> Call:
    app = typer.Typer()
    app.command()(report_command)

    def report(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return report


def made(folder: Path) -> dict[str, Any]:
    assert {path.name for path in folder.iterdir()} == {PAGE, JSON, YAML}
    values: dict[str, Any] = json.loads((folder / JSON).read_text())
    return values


def test_a_simulation_is_reported_beside_its_ledgers(run: Path, call: Call) -> None:
    code, text = call(run)
    assert code == 0 and text.startswith("sound: ") and "promises nothing" in text
    assert made(run / "report")["name"] == "spring"
    assert call(run)[0] == 0  # again: the earlier files are replaced


def test_a_platform_is_open_alone_and_sound_against_receipts(run: Path, tmp_path: Path, call: Call) -> None:
    platform = tmp_path / "shop"
    (platform / "worker").mkdir(parents=True)
    (platform / "worker" / "ledger").mkdir()
    shutil.copy(run / "ledger" / "shop.jsonl", platform / "worker" / "ledger")
    code, text = call(platform, "--out", tmp_path / "alone")
    assert code == 2 and "Nobody outside vouches for shop" in text
    values = made(tmp_path / "alone")
    # The names of the runs in its ledger show that they were simulations.
    assert values["kind"] == "platform" and values["verdict"]["standing"] == "simulated"
    assert any("no simulation" in one for one in values["promise"]["assumptions"])
    code, _ = call(platform, "--receipts", run / "receipts.jsonl", "--model", run / "model", "--out", tmp_path / "both")
    assert code == 0 and made(tmp_path / "both")["records"][0]["checked"] == 6


def test_a_ledger_by_itself(run: Path, call: Call) -> None:
    code, _ = call(run / "ledger" / "video.jsonl")
    values = made(run / "ledger" / "video-report")
    assert code == 2 and values["kind"] == "ledgers" and values["settings"] == {}


def test_a_coordinator_s_run_without_and_with_the_platforms_ledgers(run: Path, tmp_path: Path, call: Call) -> None:
    shutil.move(run / "ledger", tmp_path / "ledgers")
    for name in ("metrics.json", "run.toml"):
        (run / name).unlink()
    (run / "state.json").write_text(json.dumps({"run": "spring", "state": "finished", "round": 3, "platforms": {}}))
    event = {"kind": "silent", "round": 2, "text": "shop: no answer", "platform": "shop", "time": 1.0}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    code, text = call(run, "--out", tmp_path / "without")
    values = made(tmp_path / "without")
    assert code == 2 and "ledgers are at the platforms" in text and values["kind"] == "coordinator"
    assert [one["spent"] for one in values["budgets"]] != [None, None] and not any(one["recomputed"] for one in values["budgets"])
    shop = values["participants"][0]
    assert (shop["failures"], shop["trouble"], shop["rounds"], shop["answers"]) == (1, "no answer", 3, 5)
    code, _ = call(run, *sorted((tmp_path / "ledgers").iterdir()), "--out", tmp_path / "with")
    values = made(tmp_path / "with")
    assert code == 0 and all(one["recomputed"] for one in values["budgets"]) and values["settings"]["training.local_steps"] == 2


def test_a_changed_ledger_ends_with_1_and_is_reported_all_the_same(run: Path, call: Call) -> None:
    path = run / "ledger" / "shop.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps":2', b'"steps":1', 1))
    code, text = call(run)
    assert code == 1 and text.startswith("unsound: ") and "shop" in text
    assert made(run / "report")["verdict"]["exit_code"] == 1


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_wrong_input_is_a_verdict(run: Path, tmp_path: Path, call: Call, as_json: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("")
    (tmp_path / "noise.jsonl").write_bytes(b"\x00\xff" * 50_000)
    for words in (
        [tmp_path / "nothing"],
        [tmp_path / "empty"],
        [run, "--out", tmp_path / "taken"],
        [run, "--receipts", tmp_path / "empty"],
        [run, "--model", tmp_path / "empty"],
        [run, "--head", "xyz"],
        [run, "--trust", tmp_path / "noise.jsonl"],
        [run, "--attack", tmp_path / "nothing"],
        [run, tmp_path / "nothing"],
    ):
        code, text = call(*words, *as_json)
        assert code == 2 and "cannot tell" in text, words
        if as_json:
            assert json.loads(text)["verdict"] == "cannot tell"
    code, _ = call(tmp_path / "noise.jsonl", *as_json)
    assert code in (1, 2)
    (run / "metrics.json").write_text("{")
    assert call(run, *as_json)[0] == 2


def test_json_is_the_file(run: Path, call: Call) -> None:
    code, text = call(run, "--json")
    assert code == 0 and text == (run / "report" / JSON).read_text()
