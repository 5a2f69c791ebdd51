"""Adapters with a residual or a core: stock PEFT must compute what the platforms computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertModel

from shared.base.errors import InputError
from shared.base.settings import Settings, build
from shared.model.adapter import TARGETS, layout_of
from shared.model.backbone import load_backbone, shape_of
from shared.model.encoder import Batch, Encoder
from shared.model.factor_schedule import scheme_of
from shared.model.fixed_factors import core_factors, folded
from shared.model.peft_export import export, load_published

EVERY = ",".join(TARGETS)


def settings_of(backbone: str, strategy: str, **model: Any) -> Settings:
    values = {"backbone": backbone, "layers": 2, "rank": 3, "alpha": 5.0, "targets": EVERY, **model}
    return build({"strategy": strategy, "model": values}, where="test")


def stirred(settings: Settings, *, residual: bool, quiet: bool = False) -> dict[str, np.ndarray]:
    """Random factors; with a residual on some maps, of another rank on each."""
    random = np.random.default_rng(1)
    layout = layout_of(shape_of(settings.model.backbone), settings.model, scheme_of(settings.strategy))
    adapter = {name: random.normal(0, 0.15, shape).astype(np.float32) for name, shape in layout.items()}
    maps = [name.removesuffix(".lora_A") for name in layout if name.endswith(".lora_A")]
    for number, name in enumerate(maps if residual else []):
        if number % 3 == 2:
            continue
        rank = 1 + number % 7
        adapter[f"{name}.residual_A"] = random.normal(0, 0.15, (rank, layout[f"{name}.lora_A"][1])).astype(np.float32)
        adapter[f"{name}.residual_B"] = random.normal(0, 0.15, (layout[f"{name}.lora_B"][0], rank)).astype(np.float32)
        if quiet:
            adapter[f"{name}.lora_B"][:] = 0.0
    return adapter


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randint(5, 80, (3, 9), generator=random), torch.arange(9) < torch.tensor([[9], [4], [1]])


def ours(settings: Settings, adapter: dict[str, np.ndarray], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    encoder = Encoder(load_backbone(settings.model.backbone), settings.model, device=torch.device("cpu"), dtype=torch.float32)
    tensors = {name: torch.from_numpy(value) for name, value in adapter.items()}
    with torch.no_grad():
        return encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), tensors)


def stock(settings: Settings, folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        BertModel.from_pretrained(settings.model.backbone, add_pooling_layer=False), str(folder)
    ).eval()
    head = {name: torch.from_numpy(value) for name, value in load_file(folder / "head.safetensors").items()}
    with torch.no_grad():
        states = model(ids, attention_mask=mask.long()).last_hidden_state
    weight = mask.unsqueeze(-1).float()
    mean = (states * weight).sum(1) / weight.sum(1)
    return mean + settings.model.alpha / settings.model.rank * mean @ head["lora_A"].T @ head["lora_B"].T


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("targets", [EVERY, "query,value", "output,intermediate"])
def test_stock_peft_computes_adapter_and_residual(tiny_bert: str, tmp_path: Path, targets: str, quiet: bool) -> None:
    settings = settings_of(tiny_bert, "exact", targets=targets)
    adapter = stirred(settings, residual=True, quiet=quiet)
    export(adapter, settings, tmp_path)
    expected = ours(settings, adapter, *tokens())
    torch.testing.assert_close(stock(settings, tmp_path, *tokens()), expected, atol=1e-4, rtol=1e-4)
    bare = {name: value for name, value in adapter.items() if "residual" not in name}
    assert not torch.allclose(ours(settings, bare, *tokens()), expected, atol=1e-2)  # the residual does count
    read = load_published(tmp_path)
    torch.testing.assert_close(ours(settings, read.adapter, *tokens()), expected, atol=1e-4, rtol=1e-4)


def test_stock_peft_computes_a_core(tiny_bert: str, tmp_path: Path) -> None:
    settings = settings_of(tiny_bert, "fedsb")
    core = stirred(settings, residual=False)
    assert {value.shape for value in core.values()} == {(3, 3)}
    export(core, settings, tmp_path)
    factors = core_factors(settings, load_backbone(tiny_bert))
    expected = ours(settings, {**factors, **core}, *tokens())
    torch.testing.assert_close(stock(settings, tmp_path, *tokens()), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours(settings, folded(core, factors), *tokens()), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        ours(settings, folded({k: v.T.copy() for k, v in core.items()}, factors), *tokens()), expected, atol=1e-2
    )


@pytest.mark.parametrize(
    "ranks",
    [
        {"head": 4},
        {"encoder.layer.9.output.dense": 3},
        [],
        None,
        {"head": 0},
        {"head": True},
        {"head": 10**9},
        {"head": "3"},
    ],
    ids=str,
)
def test_ranks_that_are_not_the_tensors_are_refused(tiny_bert: str, tmp_path: Path, ranks: Any) -> None:
    settings = settings_of(tiny_bert, "fedavg")
    export(stirred(settings, residual=False), settings, tmp_path)
    about = json.loads((tmp_path / "fedfuse.json").read_text())
    (tmp_path / "fedfuse.json").write_text(json.dumps({**about, "ranks": ranks}))
    with pytest.raises(InputError):
        load_published(tmp_path)


def test_a_map_of_another_rank_than_its_settings_say_is_refused(tiny_bert: str, tmp_path: Path) -> None:
    settings = settings_of(tiny_bert, "exact")
    export(stirred(settings, residual=True), settings, tmp_path)
    head = load_file(tmp_path / "head.safetensors")
    save_file({"lora_A": head["lora_A"][:-1].copy(), "lora_B": head["lora_B"][:, :-1].copy()}, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match="shape"):
        load_published(tmp_path)
