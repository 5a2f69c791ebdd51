"""The main job end to end: from files to a pulled model, through an interruption, and with a platform that runs out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from client.config.platform_file import load
from client.privacy.ledger_writer import LedgerWriter
from client.recommender.lists.recommended import ListRules
from client.recommender.serving.recommend import recommend_items
from server.monitoring.run_events import Event, Kind
from server.registry.pull import pull_model
from shared.base.errors import InputError, StorageError
from shared.base.settings import Settings
from shared.ledger.audit import audit_run
from shared.privacy.releases import Release, ReleaseKind
from shared.protocol.quality import METRICS
from simulations.run import Simulation, run_simulation
from simulations.worlds.world import World, open_world

Write = Callable[..., Path]
Make = Callable[..., Settings]
QUALITY = set(METRICS)


@pytest.fixture
def two(write_platform: Write) -> World:
    """Two platforms with different schemas."""
    write_platform("shop")
    path = write_platform("video", seed=1, items=14)
    events = (path.parent / "video-events.csv").read_text().replace("user,item,time", "who|what|when").replace(",", "|")
    (path.parent / "video-events.csv").write_text(events)
    columns = 'separator = "|"\ncolumns = { user = "who", item = "what", time = "when" }\n'
    path.write_text(path.read_text().replace('path = "video-events.csv"\n', 'path = "video-events.csv"\n' + columns))
    return open_world(path.parent)


def run(world: World, settings: Settings, out: Path, **over: Any) -> dict[str, Any]:
    return run_simulation(Simulation(world=world, settings=settings, out=out, **over))


def points_of(folder: Path) -> dict[str, dict[int, float]]:
    """Curve -> round -> value, of what TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {one.step: float(make_ndarray(one.tensor_proto)) for one in events.Tensors(name)}
        for name in events.Tags()["tensors"]
    }


def test_the_run_folder_holds_what_the_readme_says(two: World, tiny_settings: Make, tmp_path: Path, tiny_bert: str) -> None:
    from peft import PeftModel
    from transformers import BertModel

    out = tmp_path / "run"
    metrics = run(two, tiny_settings(), out)
    assert json.loads((out / "metrics.json").read_text())["platforms"].keys() == {"shop", "video"}
    for name, result in metrics["platforms"].items():
        assert [one["round"] for one in result["per_round"]] == [0, 2]
        assert [{key: one[key] for key in QUALITY} for one in result["per_round"]] == [result["before"], result["federated"]]
        for stage in ("before", "own", "federated"):
            assert set(result[stage]) == QUALITY
            assert all(0 <= value <= 1 for value in result[stage].values())
        assert {"epsilon", "delta", "budget", "bytes_up", "bytes_down"} <= set(result)
        assert 0 < result["epsilon"] <= result["budget"] == 50.0
        assert result["bytes_up"] > 0
        assert (out / "ledger" / f"{name}.jsonl").exists()
    curves = {"change": [1, 2], **{f"epsilon/{name}": [1, 2] for name in ("shop", "video")}, "ndcg@10/shop": [0, 2]}
    assert {name: list(points) for name, points in points_of(out / "tensorboard").items() if name in curves} == curves
    assert all(norm > 0 for norm in points_of(out / "tensorboard")["change"].values())
    assert "local_steps = 2" in (out / "run.toml").read_text()
    stock = PeftModel.from_pretrained(BertModel.from_pretrained(tiny_bert, add_pooling_layer=False), str(out / "model"))
    trained = [parameter for name, parameter in stock.named_parameters() if "lora_B" in name]
    assert trained and all(parameter.abs().sum() > 0 for parameter in trained)
    assert set(load_file(out / "model" / "head.safetensors")) == {"lora_A", "lora_B"}
    assert audit_run(out).ok
    pulled = pull_model(str(out), tmp_path / "pulled", unsigned=True)
    file = load(two.platforms[0])
    items = recommend_items(file, model=pulled.folder, user="u3", rules=ListRules(top=4), cache=tmp_path / "cache")
    had = {line.split(",")[1] for line in (two.folder / "shop-events.csv").read_text().splitlines() if line.startswith("u3,")}
    assert len(items) == 4
    assert not had & {item.item for item in items}
    assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)
    again = recommend_items(file, model=pulled.folder, user="u3", rules=ListRules(top=4), cache=tmp_path / "cache")
    assert items == again


def test_an_interrupted_run_goes_on_to_the_same_end(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(rounds=3, evaluate_every=1)
    straight = run(two, settings, tmp_path / "straight")
    assert [one["round"] for one in straight["platforms"]["shop"]["per_round"]] == [0, 1, 2, 3]

    def stop(event: Event) -> None:
        if event.kind is Kind.ROUND and event.round == 2:
            raise KeyboardInterrupt

    out = tmp_path / "broken"
    plan = Simulation(world=two, settings=settings, out=out)
    with pytest.raises(KeyboardInterrupt):
        run_simulation(plan, events=stop)
    resumed = run(two, settings, out, resume=True)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        a, b = load_file(tmp_path / "straight" / "model" / name), load_file(out / "model" / name)
        assert all((a[key] == b[key]).all() for key in a)
    for name in straight["platforms"]:
        assert resumed["platforms"][name]["federated"] == straight["platforms"][name]["federated"]
        assert resumed["platforms"][name]["per_round"] == straight["platforms"][name]["per_round"]
        assert resumed["platforms"][name]["epsilon"] == straight["platforms"][name]["epsilon"]
    assert audit_run(out).ok


def test_the_same_seed_gives_the_same_model(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(two, tiny_settings(), tmp_path / name)
    run(two, tiny_settings(seed=1), tmp_path / "c")
    a, b, c = (load_file(tmp_path / name / "model" / "head.safetensors")["lora_B"] for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


def test_a_platform_that_runs_out_leaves_and_the_others_go_on(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    out, settings = tmp_path / "run", tiny_settings(rounds=3)
    told: list[Event] = []

    def spend(event: Event) -> None:
        told.append(event)
        if event.kind is Kind.ROUND and event.round == 1:
            # Somebody else releases from the same ledger: what is left does not pay for round 2.
            workers[0]._writer.charge(
                Release(kind=ReleaseKind.TRAIN, noise_multiplier=0.35), run="other", round=1, question="5" * 64
            )

    from simulations import run as module

    workers: list[Any] = []
    made = module._worker

    def keep(*args: Any) -> Any:
        workers.append(made(*args))
        return workers[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_worker", keep)
        metrics = run_simulation(Simulation(world=two, settings=settings, out=out), events=spend)
    assert metrics["rounds"] == 3
    shop, video = metrics["platforms"]["shop"], metrics["platforms"]["video"]
    assert "budget" in shop["refusals"].values()
    assert shop["rounds"] < video["rounds"] == 3
    assert shop["epsilon"] <= 50.0
    assert any(event.kind is Kind.LEFT and event.platform == "shop" for event in told)
    assert isinstance(workers[0]._writer, LedgerWriter | None)
    assert audit_run(out).ok


def test_without_privacy_every_output_says_so(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    from rich.console import Console

    from simulations.terminal import metrics_table

    out = tmp_path / "run"
    metrics = run(two, tiny_settings(privacy={"epsilon": "inf"}), out)
    assert metrics["private"] is False
    assert json.loads((out / "metrics.json").read_text())["platforms"]["shop"]["epsilon"] == "inf"
    console = Console(width=200, record=True)
    console.print(metrics_table(json.loads((out / "metrics.json").read_text())))
    assert "PRIVACY IS OFF" in console.export_text()
    assert "Privacy was OFF" in (out / "model" / "README.md").read_text()


def test_where_some_users_were_ranked_the_table_says_so(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    from rich.console import Console

    from simulations.terminal import metrics_table

    metrics = run(two, tiny_settings(strategy="preferences", rounds=0), tmp_path / "run")
    shop = metrics["platforms"]["shop"]
    assert shop["held_out_users"] == shop["segments"]["all"]["users"] > 0

    def shown() -> str:
        console = Console(width=100, record=True)
        console.print(metrics_table(metrics))
        return console.export_text()

    assert "users ranked" not in shown()
    shop["held_out_users"] = 1_000_000
    assert f"{shop['segments']['all']['users']:,} of 1,000,000 users ranked" in shown()


def test_a_tampered_ledger_is_found(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(two, tiny_settings(), out)
    path = out / "ledger" / "shop.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (whole.replace(b'"steps":2', b'"steps":1'), b"".join(lines[:-1]), b"".join([lines[0], *lines[2:]])):
        path.write_bytes(damaged)
        assert not audit_run(out).ok
    path.write_bytes(whole)
    assert audit_run(out).ok


def test_a_tampered_model_is_not_pulled(two: World, tiny_settings: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(two, tiny_settings(), out)
    weights = out / "model" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StorageError):
        pull_model(str(out), tmp_path / "pulled", unsigned=True)
    assert not (tmp_path / "pulled").exists()


class TestRunFolder:
    def test_is_not_overwritten(self, two: World, tiny_settings: Make, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "precious").write_text("mine")
        with pytest.raises(InputError, match="not empty"):
            run(two, tiny_settings(), tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]

    def test_nothing_to_resume(self, two: World, tiny_settings: Make, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no run to resume"):
            run(two, tiny_settings(), tmp_path / "run", resume=True)

    def test_resuming_with_other_settings(self, two: World, tiny_settings: Make, tmp_path: Path) -> None:
        run(two, tiny_settings(), tmp_path / "run")
        with pytest.raises(InputError, match="rounds: 2 -> 5"):
            run(two, tiny_settings(rounds=5), tmp_path / "run", resume=True)


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_flowers_ray_engine_gives_the_same_model(two: World, tiny_settings: Make, tmp_path: Path, patient_ray: None) -> None:
    run(two, tiny_settings(), tmp_path / "process")
    run(two, tiny_settings(), tmp_path / "ray", ray=True)
    a, b = (load_file(tmp_path / name / "model" / "head.safetensors") for name in ("process", "ray"))
    # Ray's workers use one thread each, so sums may round otherwise.
    assert all(torch.allclose(torch.from_numpy(a[key]), torch.from_numpy(b[key]), atol=1e-3) for key in a)
    assert audit_run(tmp_path / "ray").ok
