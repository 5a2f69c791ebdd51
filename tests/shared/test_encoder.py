"""The encoder computes what transformers and PEFT compute, to the last bit that the order of additions allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

from shared.adapter import HEAD, first_trained, initial, layout_of
from shared.backbone import EMBEDDED_SHA256, load_backbone, shape_of
from shared.encoder import Batch, Encoder
from shared.errors import InputError
from shared.lora import apply
from shared.peft_export import export, load_published
from shared.settings import ModelSettings, Settings

CPU = torch.device("cpu")


def encoder_of(backbone: str, **model: object) -> Encoder:
    settings = ModelSettings.model_validate({"backbone": backbone, "rank": 3, "layers": 2, **model})
    return Encoder(load_backbone(backbone), settings, device=CPU, dtype=torch.float32)


def batch_of(rows: int, length: int, *, seed: int = 0, vocabulary: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (rows, length), generator=generator)
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    return ids, mask


def stirred(settings: ModelSettings, seed: int = 1) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    layout = layout_of(shape_of(settings.backbone), settings)
    return {name: torch.from_numpy(random.normal(0, 0.2, shape).astype(np.float32)) for name, shape in layout.items()}


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 9), (4, 7), (3, 30)])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_without_adapter_it_is_bert(tiny_bert: str, rows: int, length: int, layers: int) -> None:
    encoder = encoder_of(tiny_bert, layers=layers)
    ids, mask = batch_of(rows, length)
    bert = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = bert(ids, attention_mask=mask.long()).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        expected = (states * weight).sum(1) / weight.sum(1)
        found = encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), {})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_is_padded_does_not_matter(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    ids, mask = batch_of(3, 10)
    hidden = encoder.trunk(ids, mask)
    other = torch.where(mask.unsqueeze(-1), hidden, torch.full_like(hidden, 37.0))
    adapter = stirred(encoder.model)
    torch.testing.assert_close(
        encoder.pooled(Batch(hidden=other, mask=mask), adapter), encoder.pooled(Batch(hidden=hidden, mask=mask), adapter)
    )


def test_an_empty_row_is_finite(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    hidden, mask = torch.zeros(2, 4, 32), torch.zeros(2, 4, dtype=torch.bool)
    assert torch.isfinite(encoder.pooled(Batch(hidden=hidden, mask=mask), stirred(encoder.model))).all()


def test_gradient_path_and_inference_path_agree(tiny_bert: str) -> None:
    # Attention takes another form when a gradient is asked for on a processor.
    encoder = encoder_of(tiny_bert)
    ids, mask = batch_of(4, 8)
    batch = Batch(hidden=encoder.trunk(ids, mask), mask=mask)
    adapter = stirred(encoder.model)
    with torch.no_grad():
        expected = encoder.pooled(batch, adapter)
    found = encoder.pooled(batch, {name: value.clone().requires_grad_() for name, value in adapter.items()})
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", ["query,value", "query,key,value,attention_output,intermediate,output", "output"])
@pytest.mark.parametrize("rank", [1, 4])
def test_published_adapter_gives_the_same_in_stock_peft(tiny_bert: str, tmp_path: Path, targets: str, rank: int) -> None:
    from peft import PeftModel

    settings = Settings(model=ModelSettings(backbone=tiny_bert, rank=rank, layers=2, targets=targets, alpha=5.0))
    encoder = encoder_of(tiny_bert, rank=rank, targets=targets, alpha=5.0)
    adapter = stirred(settings.model)
    export({name: value.numpy() for name, value in adapter.items()}, settings, tmp_path)
    model = PeftModel.from_pretrained(BertModel.from_pretrained(tiny_bert, add_pooling_layer=False), str(tmp_path)).eval()
    head = load_file(tmp_path / "head.safetensors")
    ids, mask = batch_of(3, 9)
    with torch.no_grad():
        states = model(ids, attention_mask=mask.long()).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        mean = (states * weight).sum(1) / weight.sum(1)
        expected = mean + settings.model.alpha / rank * mean @ head["lora_A"].T @ head["lora_B"].T
        found = encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), adapter)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    back = load_published(tmp_path)
    assert back.model == settings.model
    assert all((back.adapter[name] == value.numpy()).all() for name, value in adapter.items())


def test_a_copy_per_row_is_that_rows_adapter(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert, targets="query,value,intermediate,output")
    ids, mask = batch_of(3, 6)
    hidden = encoder.trunk(ids, mask)
    adapters = [stirred(encoder.model, seed) for seed in range(3)]
    together = encoder.pooled(
        Batch(hidden=hidden, mask=mask), {name: torch.stack([adapter[name] for adapter in adapters]) for name in adapters[0]}
    )
    for row, adapter in enumerate(adapters):
        one = slice(row, row + 1)
        torch.testing.assert_close(
            together[one], encoder.pooled(Batch(hidden=hidden[one], mask=mask[one]), adapter), atol=1e-5, rtol=1e-5
        )


def test_lora_apply_shapes() -> None:
    x, factor = torch.randn(2, 5, 3), torch.randn(4, 3)
    torch.testing.assert_close(apply(factor.expand(2, 4, 3), x), apply(factor, x))
    torch.testing.assert_close(apply(factor.expand(2, 4, 3), x[:, 0]), apply(factor, x[:, 0]))


def test_initial_adapter_changes_nothing_and_repeats(tiny_bert: str) -> None:
    settings = Settings(model=ModelSettings(backbone=tiny_bert, layers=1))
    first, again = initial(settings), initial(settings)
    assert all((first[name] == again[name]).all() for name in first)
    assert all(not value.any() for name, value in first.items() if name.endswith("lora_B"))
    assert all(value.any() for name, value in first.items() if name.endswith("lora_A"))
    assert {name for name in first if name.startswith(HEAD)} == {"head.lora_A", "head.lora_B"}


class TestBackbone:
    def test_embedded_weights_are_the_known_ones(self) -> None:
        backbone = load_backbone("minilm")
        assert backbone.sha256 == EMBEDDED_SHA256
        assert (backbone.shape.hidden, backbone.shape.layers) == (384, 6)
        assert first_trained(backbone.shape, ModelSettings()) == 4

    @pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder"])
    def test_missing_folder(self, name: str) -> None:
        with pytest.raises(InputError, match="no such backbone folder"):
            shape_of(name)

    def test_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no config\.json"):
            load_backbone(str(tmp_path))

    def test_another_architecture(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        with pytest.raises(InputError, match="gpt2"):
            load_backbone(str(tmp_path))

    @pytest.mark.parametrize("damage", ["truncate", "empty", "missing"])
    def test_damaged_weights(self, tiny_bert: str, tmp_path: Path, damage: str) -> None:
        for path in Path(tiny_bert).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        weights = tmp_path / "model.safetensors"
        if damage == "missing":
            weights.unlink()
        else:
            weights.write_bytes(weights.read_bytes()[: 500 if damage == "truncate" else 0])
        with pytest.raises(InputError):
            load_backbone(str(tmp_path))

    def test_too_many_layers(self, tiny_bert: str) -> None:
        with pytest.raises(InputError, match="has 3"):
            first_trained(shape_of(tiny_bert), ModelSettings(layers=4))
