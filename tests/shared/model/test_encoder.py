"""The encoder computes what transformers computes, to the last bit that the order of additions allows."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertModel

from shared.base.settings import ModelSettings, Settings
from shared.layers import attention, lora
from shared.layers import manual_backward as layer
from shared.layers.lora import apply
from shared.layers.reference_path import plainly
from shared.model import encoder as encoder_module
from shared.model.adapter import TARGETS, initial, layout_of
from shared.model.backbone import folder_of, load_backbone, shape_of
from shared.model.encoder import Batch, Encoder, compute_dtype, default_device
from tests.support.bfloat16 import needs_bfloat16

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


@pytest.mark.parametrize("targets", ["query,value", ",".join(TARGETS)])
def test_it_does_not_matter_where_it_is_cut(tiny_bert: str, targets: str) -> None:
    # The top layer's adapter alone, read by encoders that keep one, two or three layers out of the trunk.
    ids, mask = batch_of(4, 9)
    adapter = stirred(encoder_of(tiny_bert, layers=1, targets=targets).model)
    found = []
    for layers in (1, 2, 3):
        encoder = encoder_of(tiny_bert, layers=layers, targets=targets)
        assert encoder.cut == 3 - layers
        found.append(encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), adapter))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_batch_of_one_is_what_it_is_among_others(tiny_bert: str, length: int) -> None:
    # Position ids broadcast to a batch of one have been wrong elsewhere (opacus#841).
    encoder = encoder_of(tiny_bert)
    ids, mask = batch_of(5, length)
    together = encoder.trunk(ids, mask)
    adapter = stirred(encoder.model)
    pooled = encoder.pooled(Batch(hidden=together, mask=mask), adapter)
    for row in range(5):
        real = int(mask[row].sum())
        alone = encoder.trunk(ids[row : row + 1, :real], mask[row : row + 1, :real])
        torch.testing.assert_close(alone[0], together[row, :real], atol=1e-4, rtol=1e-4)
        one = encoder.pooled(Batch(hidden=alone, mask=mask[row : row + 1, :real]), adapter)
        torch.testing.assert_close(one[0], pooled[row], atol=1e-4, rtol=1e-4)


def test_the_order_of_words_matters(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    ids, mask = torch.tensor([[2, 9, 10, 3], [2, 10, 9, 3]]), torch.ones(2, 4, dtype=torch.bool)
    vectors = encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), {})
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_b_zero_is_no_adapter(tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert, targets=",".join(TARGETS))
    ids, mask = batch_of(3, 6)
    batch = Batch(hidden=encoder.trunk(ids, mask), mask=mask)
    adapter = {name: torch.from_numpy(value) for name, value in initial(Settings(model=encoder.model)).items()}
    torch.testing.assert_close(encoder.pooled(batch, adapter), encoder.pooled(batch, {}), atol=0, rtol=0)


class TestSourceTokens:
    def parts(self, backbone: str) -> tuple[Encoder, Batch, dict[str, torch.Tensor]]:
        encoder = encoder_of(backbone)
        ids, mask = batch_of(4, 6)
        generator = torch.Generator().manual_seed(2)
        batch = Batch(
            hidden=encoder.trunk(ids, mask),
            mask=mask,
            tokens=torch.randn(4, 3, 32, generator=generator),
            token_mask=torch.tensor([[True, True, True], [True, False, False], [False, True, False], [False, False, False]]),
        )
        return encoder, batch, stirred(encoder.model)

    def test_an_absent_one_changes_nothing(self, tiny_bert: str) -> None:
        encoder, batch, adapter = self.parts(tiny_bert)
        without = encoder.pooled(replace(batch, tokens=None, token_mask=None), adapter)
        assert batch.token_mask is not None
        nobody = encoder.pooled(replace(batch, token_mask=torch.zeros_like(batch.token_mask)), adapter)
        torch.testing.assert_close(nobody, without, atol=1e-6, rtol=1e-5)
        found = encoder.pooled(batch, adapter)
        torch.testing.assert_close(found[3], without[3], atol=1e-6, rtol=1e-5)
        assert not torch.isclose(found[:3], without[:3], atol=1e-3).all(1).any()

    def test_what_an_absent_one_holds_is_not_read(self, tiny_bert: str) -> None:
        encoder, batch, adapter = self.parts(tiny_bert)
        assert batch.tokens is not None and batch.token_mask is not None
        other = torch.where(batch.token_mask.unsqueeze(-1), batch.tokens, torch.full_like(batch.tokens, 1e4))
        assert torch.equal(encoder.pooled(replace(batch, tokens=other), adapter), encoder.pooled(batch, adapter))

    def test_they_have_no_order(self, tiny_bert: str) -> None:
        encoder, batch, adapter = self.parts(tiny_bert)
        assert batch.tokens is not None and batch.token_mask is not None
        turned = replace(batch, tokens=batch.tokens.flip(1), token_mask=batch.token_mask.flip(1))
        torch.testing.assert_close(encoder.pooled(turned, adapter), encoder.pooled(batch, adapter), atol=1e-5, rtol=1e-5)

    def test_they_are_words_that_are_read_but_not_pooled(self, tiny_bert: str) -> None:
        # The same layers run over the longer sequence by transformers itself; the mean is over the words alone.
        encoder, batch, _ = self.parts(tiny_bert)
        assert batch.tokens is not None and batch.token_mask is not None
        bert = BertModel.from_pretrained(tiny_bert, add_pooling_layer=False, attn_implementation="eager").eval()
        states = torch.cat([batch.hidden, batch.tokens], 1)
        mask = torch.cat([batch.mask, batch.token_mask], 1)
        bias = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]
        with torch.no_grad():
            for layer in bert.encoder.layer[encoder.cut :]:
                states = layer(states, attention_mask=bias)
                states = states[0] if isinstance(states, tuple) else states
        weight = batch.mask.unsqueeze(-1).float()
        expected = (states[:, :6] * weight).sum(1) / weight.sum(1)
        torch.testing.assert_close(encoder.pooled(batch, {}), expected, atol=1e-4, rtol=1e-4)


@needs_bfloat16
def test_bfloat16_is_near_float32(tiny_bert: str) -> None:
    ids, mask = batch_of(4, 9)
    exact = encoder_of(tiny_bert)
    rounded = Encoder(exact.backbone, exact.model, device=CPU, dtype=torch.bfloat16)
    adapter = stirred(exact.model)
    found, expected = (encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), adapter) for encoder in (rounded, exact))
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99


def test_the_embedded_backbone_is_minilm_under_stock_transformers() -> None:
    """The real weights and the real tokenizer, once."""
    folder = folder_of("minilm")
    encoder = encoder_of("minilm", layers=2)
    encoded = encoder.backbone.tokenizer(
        ["A red river.", "jazz, and more jazz for a long evening"], padding=True, return_tensors="pt"
    )
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
    bert = BertModel.from_pretrained(str(folder), add_pooling_layer=False).eval()
    with torch.no_grad():
        states = bert(**encoded).last_hidden_state
    weight = mask.unsqueeze(-1).float()
    found = encoder.pooled(Batch(hidden=encoder.trunk(ids, mask), mask=mask), {})
    torch.testing.assert_close(found, (states * weight).sum(1) / weight.sum(1), atol=1e-5, rtol=1e-4)


def test_a_dtype_that_the_processor_has() -> None:
    assert compute_dtype(CPU) in (torch.bfloat16, torch.float32)
    assert compute_dtype(torch.device("mps")) == torch.float32
    assert default_device().type in ("cpu", "cuda", "mps")


def test_plainly_it_takes_none_of_our_derivatives_and_compiles_nothing(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("not plain")

    model = ModelSettings.model_validate({"backbone": tiny_bert, "rank": 3, "layers": 2})
    monkeypatch.setattr(torch, "compile", lambda function, **_: never)
    encoder = Encoder(load_backbone(tiny_bert), model, device=CPU, dtype=torch.float32, compiled=True)
    ids, mask = batch_of(3, 10)
    batch = Batch(hidden=encoder.trunk(ids, mask), mask=mask)
    copies = {name: value.expand(3, *value.shape).requires_grad_() for name, value in stirred(model).items()}
    expected = encoder_of(tiny_bert).pooled(batch, copies)
    for function in (layer._Attention, layer._Inner, lora._Merged, attention._Written):
        monkeypatch.setattr(function, "apply", never)
    with plainly():
        torch.testing.assert_close(encoder.pooled(batch, copies), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(AssertionError, match="not plain"):
        encoder.pooled(batch, copies)


class TestFrozenWeights:
    def test_encoders_of_one_backbone_share_them_and_they_go_with_the_last(self, tiny_bert: str) -> None:
        model = ModelSettings(backbone=tiny_bert, layers=2)
        backbone = load_backbone(tiny_bert)
        # Weights of this test's own: those of the fixture may be held by whatever else lives in this process.
        backbone = replace(backbone, weights=dict(backbone.weights))

        def held() -> int:
            gc.collect()
            return sum(frozen.of is backbone.weights for frozen in encoder_module._SHARED.values())

        assert held() == 0
        first = Encoder(backbone, model, device=CPU, dtype=torch.float64)
        other = Encoder(backbone, model, device=CPU, dtype=torch.float64)
        half = Encoder(backbone, model, device=CPU, dtype=torch.bfloat16)
        assert first._frozen is other._frozen
        assert half._frozen is not first._frozen
        assert held() == 2
        del first, half
        assert held() == 1
        del other
        assert held() == 0

    def test_other_weights_under_the_same_name_are_others(self, tiny_bert: str) -> None:
        model = ModelSettings(backbone=tiny_bert, layers=2)
        backbone = load_backbone(tiny_bert)
        changed = replace(backbone, weights={name: 2 * value for name, value in backbone.weights.items()})
        one, two = (Encoder(each, model, device=CPU, dtype=torch.float64) for each in (backbone, changed))
        mask = torch.ones(1, 3, dtype=torch.bool)
        ids = torch.tensor([[5, 6, 7]])
        assert not torch.allclose(one.trunk(ids, mask), two.trunk(ids, mask))
