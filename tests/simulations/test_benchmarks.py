"""The benchmarks measure what they say: their sides train, their ratios and tables follow from what was measured."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from client.config.platform_file import load
from shared.base.settings import Settings
from shared.model.backbone import load_backbone
from simulations.benchmarks import encoding, passes, sweep, training
from simulations.benchmarks.fractional_design import cross
from simulations.benchmarks.report import report

CPU = torch.device("cpu")


class TestTraining:
    def test_every_side_takes_a_step(self, tiny_bert: str) -> None:
        backbone = load_backbone(tiny_bert)
        at = training.problem(backbone.shape, batch=3, length=6, device=CPU)
        steps = training.sides(backbone, tiny_bert, at, compile_=False)
        results = training.measure(steps, turns=2, device=CPU, say=lambda _: None)
        found = training.summary(results, batch=3)
        assert set(found["ratios"]) == {
            f"{mine}_vs_{theirs}" for mine in ("all_layers", "cached_trunk") for theirs in ("peft", "peft_fp32", "opacus")
        }
        assert all(result["peak_mib"] > 0 for result in results.values())

    def test_a_ratio_is_ours_over_the_fastest_of_theirs(self) -> None:
        seconds = {
            "all_layers:eager": 2.0,
            "cached_trunk:eager": 1.0,
            "peft:sdpa attention, eager": 6.0,
            "peft:eager attention, eager": 4.0,
            "peft_fp32:sdpa attention, eager": 8.0,
            "opacus:float32": 10.0,
        }
        found = training.summary({name: {"seconds": value} for name, value in seconds.items()}, batch=32)
        assert found["best"]["peft"] == "peft:eager attention, eager"
        assert found["ratios"]["all_layers_vs_peft"] == 2.0
        assert found["ratios"]["cached_trunk_vs_opacus"] == 10.0

    def test_the_arithmetic_of_bert_base(self) -> None:
        # "About 7 ms" on an H200 at 800 TFLOP/s: 2 x 12 x 7.1 million multiply-adds a token, less the first way back.
        backbone, _ = training._base()
        assert training.arithmetic(backbone.shape, batch=256, length=64) == pytest.approx(5.51e12, rel=0.01)


class TestPasses:
    @pytest.mark.parametrize(("users", "most", "each"), [(96, 32, 32), (75, 64, 38), (3, 64, 3), (5, 2, 2)])
    def test_passes_are_even(self, users: int, most: int, each: int) -> None:
        assert passes.even(users, most) == each

    def test_every_cut_gives_the_same_gradient(self, tiny_bert: str) -> None:
        backbone = load_backbone(tiny_bert)
        private = training.Private(backbone, training.problem(backbone.shape, batch=5, length=6, device=CPU), layers=1)
        whole = private.gradient()
        for each in (1, 2, 5):
            found = passes.gradient(private, users=5, each=each)
            gap = torch.cat([(found.parts[name] - value).flatten() for name, value in whole.parts.items()]).norm()
            # In bfloat16 a product of other rows may round otherwise.
            assert gap <= 0.01 * torch.cat([value.flatten() for value in whole.parts.values()]).norm()


class TestReport:
    def report(self, *, as_json: bool) -> None:
        results = {"a": {"seconds": 0.2, "peak_mib": 10.0}, "b": {"seconds": 0.1, "peak_mib": 20.0}}
        report(results, base="a", sides="side", title="of both", facts={"users": 3}, as_json=as_json)

    def test_for_a_machine(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.report(as_json=True)
        found = json.loads(capsys.readouterr().out)
        assert found["users"] == 3 and found["sides"]["b"] == {"seconds": 0.1, "peak_mib": 20.0, "ratio": 2.0}

    def test_for_a_person(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.report(as_json=False)
        said = capsys.readouterr().out
        assert "of both" in said and re.search(r"b\W+100\.0\W+20\W+2\.00x", said), said


class TestEncoding:
    def test_every_side_gives_the_same_vectors(self, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "compute_dtype", lambda device: torch.float32)
        texts = encoding.EncodedTexts(load_backbone(tiny_bert), CPU, rows=40, layers=1)
        whole = texts.vectors(65536)
        assert whole.shape == (40, 32)
        for tokens in (1, 100, 1024):
            torch.testing.assert_close(texts.vectors(tokens), whole, atol=1e-5, rtol=1e-4)


class TestSweep:
    def test_the_table_gives_median_and_range_and_says_what_was_refused(self) -> None:
        results = [
            {"platform": "a", "epsilon": "8", "seed": seed, "settings": ["model.rank=4"], "ndcg": value}
            for seed, value in enumerate((0.1, 0.3, 0.2))
        ] + [{"platform": "b", "epsilon": "8", "seed": 0, "settings": ["model.rank=4"], "ndcg": None}]
        console = Console(width=120, file=io.StringIO())
        console.print(sweep.sweep_table(results))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "0.200 (0.100-0.300)" in text and "noise" in text

    def test_what_is_in_the_file_is_not_run_again(
        self, write_platform: Callable[..., Path], tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world, out = write_platform().parent, tmp_path / "sweep.jsonl"
        base = [
            f"model.backbone={tiny_bert}",
            "model.rank=2",
            "model.layers=2",
            "rounds=1",
            "training.local_steps=1",
            "training.sample_rate=0.5",
        ]
        words = ["sweep", str(world), "--out", str(out), "--epsilon", "50", "--base", *base, "--vary", "model.rank=1"]
        monkeypatch.setattr("sys.argv", words)
        sweep.main()
        first = out.read_text()
        rows = [json.loads(line) for line in first.splitlines()]
        assert [row["settings"][-1] for row in rows] == ["training.sample_rate=0.5", "model.rank=1"]
        assert all(0 < row["ndcg"] <= 1 for row in rows)
        out.write_text(first + '{"platform": "sh')  # a crash
        sweep.main()
        assert out.read_text().startswith(first) and len(sweep.read_cells(out)) == 2
        monkeypatch.setattr("sys.argv", [*words, "--seeds", "1"])
        sweep.main()
        assert len(sweep.read_cells(out)) == 4, "what came after the crash is on a line of its own"

    def test_a_cell_trains_where_nothing_says_for_how_long(
        self, write_platform: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ran = []

        def cell(cell: dict[str, Any], platform: Any, settings: Settings, world: Path) -> dict[str, Any]:
            ran.append(settings)
            return {**cell, "ndcg": 0.1}

        monkeypatch.setattr(sweep, "prepare", lambda *given, **named: None)
        monkeypatch.setattr(sweep, "run_sweep_cell", cell)
        out = str(tmp_path / "sweep.jsonl")
        monkeypatch.setattr("sys.argv", ["sweep", str(write_platform().parent), "--out", out, "--vary", "model.rank=4"])
        sweep.main()
        assert [(made.strategy, made.rounds, made.model.rank) for made in ran] == [("fedavg", 10, 8), ("fedavg", 10, 4)]

    def test_crossed_settings_give_a_table_of_their_means(
        self,
        write_platform: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        platform, out = write_platform(), tmp_path / "crossed.jsonl"
        factors = {f"training.{key}": ["1", "2", "3"] for key in "abcde"}
        rows = [
            {
                "platform": load(platform).name,
                "epsilon": "8",
                "seed": seed,
                "settings": ["model.rank=2", *settings],
                "ndcg": 0.1 * int(settings[0][-1]) + 0.001 * (at % 7),
            }
            for at, (settings, seed) in enumerate(cross(factors, [0, 1, 2]))
        ]
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["sweep", str(platform.parent), "--out", str(out), "--table", "--base", "model.rank=2", "--seeds", "0", "1", "2"]
        monkeypatch.setattr("sys.argv", [*words, "--cross", *(f"{key}={','.join(values)}" for key, values in factors.items())])
        sweep.main()
        said = capsys.readouterr().out
        assert "81 cells" in said and re.search(r"training\.a .* 1: 0\.10\d\d  2: 0\.20\d\d  3: 0\.30\d\d .* 0\.000", said), said
        rows[0]["ndcg"] = None
        out.write_text("".join(json.dumps(row) + "\n" for row in rows[:80]))
        sweep.main()
        said = capsys.readouterr().out
        assert "79 cells" in said and "1 refused as noise" in said and "1 not run" in said
        out.write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
        sweep.main()
        assert "too few" in capsys.readouterr().out

    def test_one_setting_cannot_be_crossed(
        self, write_platform: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(
            "sys.argv", ["sweep", str(write_platform().parent), "--out", "never.jsonl", "--cross", "model.rank=1,2"]
        )
        with pytest.raises(SystemExit) as refused:
            sweep.main()
        assert refused.value.code == 2 and "two settings or more" in capsys.readouterr().err
