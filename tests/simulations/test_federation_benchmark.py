"""The quality benchmark: figures per domain, verdicts, and runs that go on where they were cut off."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shared.base.errors import InputError
from simulations.benchmarks import federation
from simulations.benchmarks.federation import ALONE, AVERAGED, SECURE, federation_table, plot, scores, verdicts, words_of


def line(parts: int, method: str, ndcgs: dict[str, float], *, seed: int = 0, platform: str = "", **more: Any) -> dict[str, Any]:
    of = {name: {"users": 100 * int(name[-1]), "before": 0.1, "ndcg": ndcg} for name, ndcg in ndcgs.items()}
    return {
        "parts": parts,
        "epsilon": "8",
        "seed": seed,
        "method": method,
        "platform": platform,
        "settings": [],
        "scores": of,
        **more,
    }


def test_a_domain_is_the_mean_of_its_parts_weighted_by_users() -> None:
    found = scores([line(2, SECURE, {"shop-1": 0.2, "shop-2": 0.5, "news-1": 0.3}), line(2, SECURE, {"shop-1": 0.4}, seed=1)])
    assert found[2, SECURE, "8", "shop"] == pytest.approx([0.4, 0.4])
    assert found[2, SECURE, "8", "news"] == pytest.approx([0.3])
    assert found[2, "before", "", "shop"] == pytest.approx([0.1, 0.1])


def test_what_was_refused_as_noise_is_told_and_what_is_not_yet_run_is_no_result() -> None:
    together = line(2, SECURE, {"shop-1": 0.2, "shop-2": 0.5})
    first = line(2, ALONE, {"shop-1": 0.4}, platform="shop-1")
    assert (2, ALONE, "8", "shop") not in scores([together, first])
    refused = line(2, ALONE, {}, platform="shop-2", refused="the planned update would be noise")
    assert scores([together, first, refused])[2, ALONE, "8", "shop"] == []
    everybody = line(2, AVERAGED, {}, refused="the planned update would be noise")
    found = scores([together, everybody])
    assert found[2, AVERAGED, "8", "shop"] == []
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(federation_table(found))
    assert console.export_text().count("noise") == 1


def test_before_is_with_the_popularities_of_the_secure_sum() -> None:
    own = line(2, AVERAGED, {"shop-1": 0.2, "shop-2": 0.5})
    pooled = line(2, SECURE, {"shop-1": 0.2, "shop-2": 0.5})
    for score in pooled["scores"].values():
        score["before"] = 0.3
    for lines in ([own, pooled], [pooled, own]):
        assert scores(lines)[2, "before", "", "shop"] == pytest.approx([0.3])


@pytest.mark.parametrize(("ndcg", "alone", "ok"), [(0.196, 0.15, True), (0.193, 0.15, False), (0.2, 0.21, False)])
def test_the_secure_sum_is_judged_by_its_own_figure_and_by_alone(ndcg: float, alone: float, ok: bool) -> None:
    whole = [line(1, SECURE, {"shop-1": 0.2}), line(1, ALONE, {"shop-1": 0.9}, platform="shop-1")]
    dealt = [line(4, SECURE, {"shop-1": ndcg}), line(4, ALONE, {"shop-1": alone}, platform="shop-1")]
    (verdict,) = verdicts(scores([*whole, *dealt]))
    assert (verdict["parts"], verdict["ok"]) == (4, ok)
    assert verdict["kept"] == pytest.approx(ndcg / 0.2, abs=1e-4)
    assert verdicts(scores(dealt)) == []


def test_methods_take_the_same_number_of_steps() -> None:
    for method in (SECURE, AVERAGED, ALONE):
        words = dict(word.split("=") for word in words_of(method, steps=60, local_steps=10, settings=[], secure=[]))
        assert int(words["rounds"]) * int(words["training.local_steps"]) == 60


def test_the_plot_and_the_table_show_every_method(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [
        line(parts, method, {"shop-1": 0.2, "news-1": 0.1}, seed=seed)
        for parts in (1, 4)
        for method in (SECURE, AVERAGED)
        for seed in (0, 1)
    ]
    found = scores(lines)
    plot(found, tmp_path / "federation.png")
    assert (tmp_path / "federation.png").stat().st_size > 10_000
    assert federation_table(found).row_count == 3


def test_it_runs_and_goes_on_where_it_was_cut_off(
    tmp_path: Path, tiny_bert: str, write_platform: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_platform("shop", users=30, declared=30)
    out = tmp_path / "out"
    settings = [f'model.backbone="{tiny_bert}"', "model.layers=2", "model.rank=2", "model.item_tokens=12", "model.user_tokens=24"]
    settings += ["training.sample_rate=0.5", "privacy.prior_noise_multiplier=1.0"]
    words = [str(tmp_path / "world"), "--out", str(out), "--parts", "1", "2", "--epsilon", "500", "--seeds", "0", "--steps", "10"]
    words += ["--methods", "fedavg", "alone", "--set", *settings]
    monkeypatch.setattr(sys, "argv", ["federation", *words, "--json"])
    assert federation.main() == 0
    first = json.loads(capsys.readouterr().out)
    kinds = {(figure["parts"], figure["method"], figure["domain"]) for figure in first["figures"]}
    assert kinds == {(parts, method, "shop") for parts in (1, 2) for method in ("before", "fedavg", "alone")}
    assert first["verdicts"] == [] and (out / "federation.png").exists()

    lines = (out / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 2 + 3
    (out / "results.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    ran: list[str] = []
    real = federation.run_federation_cell
    monkeypatch.setattr(
        federation, "run_federation_cell", lambda cell, *rest: (ran.append(cell["platform"]), real(cell, *rest))[1]
    )
    assert federation.main() == 0
    assert ran == [json.loads(lines[-1])["platform"]]
    assert len((out / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 6  # five, and the torn one
    assert json.loads(capsys.readouterr().out) == first  # simulations repeat themselves


def test_steps_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["federation", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "7"])
    with pytest.raises(InputError, match="steps"):
        federation.main()


@pytest.mark.slow
def test_the_secure_sum_is_measured_beside_the_others(
    tmp_path: Path, tiny_bert: str, write_platform: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("shop", "news", "video")):
        write_platform(name, users=30, declared=30, seed=seed)
    settings = [f'model.backbone="{tiny_bert}"', "model.layers=2", "model.rank=2", "model.item_tokens=12", "model.user_tokens=24"]
    settings += ["training.sample_rate=0.5", "privacy.prior_noise_multiplier=1.0"]
    words = [str(tmp_path / "world"), "--out", str(tmp_path / "out"), "--parts", "1", "2", "--epsilon", "500", "--seeds", "0"]
    words += ["--steps", "10", "--methods", "secure-sum", "fedavg", "--set", *settings, "--json"]
    monkeypatch.setattr(sys, "argv", ["federation", *words])
    federation.main()
    printed = json.loads(capsys.readouterr().out)
    assert {(verdict["parts"], verdict["domain"]) for verdict in printed["verdicts"]} == {
        (2, d) for d in ("news", "shop", "video")
    }
    lines = [json.loads(text) for text in (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    secure = [each for each in lines if each["method"] == SECURE]
    assert [len(each["scores"]) for each in secure] == [3, 6], [each.get("refused") for each in lines]
    for each in secure:
        assert all(0 < score["epsilon"] <= 500 and score["noise_multiplier"] > 0 for score in each["scores"].values())
