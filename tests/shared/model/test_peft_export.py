"""The published model: stock PEFT reads it, its card's code runs, and a damaged one is one clear error."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import BertModel

from shared.base.errors import FedfuseError, InputError, StorageError
from shared.base.settings import ModelSettings, Settings
from shared.model.adapter import TARGETS, layout_of
from shared.model.backbone import load_backbone, shape_of
from shared.model.encoder import Batch, Encoder
from shared.model.peft_export import export, load_published, usage

EVERY = ",".join(TARGETS)
FILES = ["adapter_config.json", "adapter_model.safetensors", "fedfuse.json", "head.safetensors"]


def settings_of(backbone: str, **model: object) -> Settings:
    return Settings(model=ModelSettings.model_validate({"backbone": backbone, "layers": 2, "rank": 3, "alpha": 5.0, **model}))


def stirred(settings: Settings, seed: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    layout = layout_of(shape_of(settings.model.backbone), settings.model)
    return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in layout.items()}


def ours(settings: Settings, adapter: dict[str, np.ndarray], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    backbone = load_backbone(settings.model.backbone)
    encoder = Encoder(backbone, settings.model, device=torch.device("cpu"), dtype=torch.float32)
    tensors = {name: torch.from_numpy(value) for name, value in adapter.items()}
    with torch.no_grad():
        return encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), tensors)


@pytest.mark.parametrize("targets", ["query,value", EVERY, "output", "intermediate", "attention_output,key"])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("layers", [1, 3])
def test_stock_peft_gives_the_same(tiny_bert: str, tmp_path: Path, targets: str, rank: int, layers: int) -> None:
    from peft import PeftModel

    settings = settings_of(tiny_bert, rank=rank, targets=targets, layers=layers)
    adapter = stirred(settings)
    export(adapter, settings, tmp_path)
    random = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(5, 80, (3, 9), generator=random), torch.arange(9) < torch.tensor([[9], [4], [1]])
    model = PeftModel.from_pretrained(BertModel.from_pretrained(tiny_bert, add_pooling_layer=False), str(tmp_path)).eval()
    head = load_file(tmp_path / "head.safetensors")
    with torch.no_grad():
        states = model(ids, attention_mask=mask.long()).last_hidden_state
        plain = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()(ids, attention_mask=mask.long())
    weight = mask.unsqueeze(-1).float()
    mean = (states * weight).sum(1) / weight.sum(1)
    expected = mean + 5.0 / rank * mean @ torch.from_numpy(head["lora_A"]).T @ torch.from_numpy(head["lora_B"]).T
    torch.testing.assert_close(ours(settings, adapter, ids, mask), expected, atol=1e-4, rtol=1e-4)
    # Every target counts; an adapter that PEFT had ignored would agree with the plain model.
    assert not torch.allclose(states, plain.last_hidden_state, atol=1e-2)
    back = load_published(tmp_path)
    assert back.model == settings.model
    assert back.adapter.keys() == adapter.keys()
    assert all((back.adapter[name] == value).all() for name, value in adapter.items())


@pytest.mark.parametrize("backbone", ["", "minilm"])
def test_the_code_of_the_card_runs_and_gives_our_vector(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """Of the embedded backbone, too, without a hub."""
    settings = settings_of(backbone or tiny_bert, targets=EVERY)
    adapter = stirred(settings)
    export(adapter, settings, tmp_path)
    code = re.search(r"```python\n(.*?)```", usage(settings.model), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(code.group(1), names)
    encoded = load_backbone(settings.model.backbone).tokenizer(["a text"], return_tensors="pt")
    expected = ours(settings, adapter, encoded["input_ids"], encoded["attention_mask"].bool())
    torch.testing.assert_close(names["vector"].detach(), torch.nn.functional.normalize(expected, dim=-1), atol=1e-4, rtol=1e-4)


def test_a_name_cannot_smuggle_code_into_the_card() -> None:
    text = usage(ModelSettings(backbone='x"); import os; os.abort(); ("'))
    names = [node for node in ast.walk(ast.parse(text.split("```")[1].removeprefix("python\n"))) if isinstance(node, ast.Import)]
    assert [alias.name for node in names for alias in node.names] == ["torch"]


def test_nothing_but_the_named_files_is_published(tiny_bert: str, tmp_path: Path) -> None:
    settings = settings_of(tiny_bert)
    export(stirred(settings), settings, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.encoder.layer.") for name in tensors)


@pytest.mark.parametrize("step", range(8))
def test_a_full_disk_leaves_every_file_whole(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    settings = settings_of(tiny_bert)
    whole = []
    for seed in (1, 2):
        export(stirred(settings, seed), settings, tmp_path / str(seed))
        whole.append({path.name: path.read_bytes() for path in (tmp_path / str(seed)).iterdir()})
    calls = iter(range(99))

    def full(_: int) -> None:
        if next(calls) == step:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            export(stirred(settings, 2), settings, tmp_path / "1")
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == FILES
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() in (whole[0][path.name], whole[1][path.name])


class TestDamage:
    @pytest.fixture
    def published(self, tiny_bert: str, tmp_path: Path) -> Path:
        settings = settings_of(tiny_bert)
        export(stirred(settings), settings, tmp_path)
        return tmp_path

    def refused(self, folder: Path) -> FedfuseError:
        with pytest.raises(InputError) as caught:
            load_published(folder)
        assert str(folder) in caught.value.where
        return caught.value

    @pytest.mark.parametrize("file", ["adapter_model.safetensors", "head.safetensors", "fedfuse.json"])
    def test_of_a_file(self, published: Path, file: str) -> None:
        content = (published / file).read_bytes()
        for broken in (b"", content[: len(content) // 2], content[:3], b"\xff" + content[1:]):
            (published / file).write_bytes(broken)
            assert self.refused(published).do
        (published / file).unlink()
        assert file in self.refused(published).found

    @pytest.mark.parametrize("how", ["value", "shape", "dtype", "missing", "extra", "whole numbers"])
    def test_of_a_tensor(self, published: Path, how: str) -> None:
        path = published / "adapter_model.safetensors"
        tensors = load_file(path)
        name = sorted(tensors)[0]
        if how == "value":
            tensors[name][0, 0] = np.nan
        elif how == "shape":
            tensors[name] = tensors[name][:, :-1].copy()
        elif how == "dtype":
            tensors[name] = tensors[name].astype(np.float64)
        elif how == "whole numbers":
            tensors[name] = np.ones(tensors[name].shape, np.int32)
        elif how == "missing":
            del tensors[name]
        else:
            tensors["base_model.model.more.lora_A.weight"] = np.ones((1, 1), np.float32)
        save_file(tensors, path)
        assert self.refused(published).do

    @pytest.mark.parametrize(
        "about", [{"model": {"rank": 0}}, {"model": {"rank": 9}}, {"model": {"colour": 1}}, {"model": []}, {"model": None}]
    )
    def test_of_the_settings(self, published: Path, about: dict[str, object]) -> None:
        path = published / "fedfuse.json"
        known = json.loads(path.read_text())
        model = {**known["model"], **about["model"]} if isinstance(about["model"], dict) else about["model"]
        path.write_text(json.dumps({**known, "model": model}))
        self.refused(published)

    @pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}"])
    def test_of_the_settings_table(self, published: Path, content: str) -> None:
        (published / "fedfuse.json").write_text(content)
        self.refused(published)

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nowhere")
        (tmp_path / "file").write_text("")
        self.refused(tmp_path / "file")
