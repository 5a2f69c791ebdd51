"""Per-user gradients: against plain autograd, against Opacus on stock PEFT, and under everything that could bend them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.fusion import FUSIONS, fusion_named
from client.gradients import clipped_sum, per_user
from client.mechanism import Mechanism
from client.selfcheck import check_gradients
from client.towers import Towers
from shared.adapter import TARGETS, layout_of
from shared.backbone import load_backbone
from shared.encoder import Batch, Encoder
from shared.errors import PrivacyError
from shared.settings import ModelSettings

CPU = torch.device("cpu")


def mechanism(*, clip: float = 1.0, noise: float = 1.0) -> Mechanism:
    return Mechanism(users=100, sample_rate=0.1, clip=clip, noise_multiplier=noise)


class Toy:
    """A two-tower of tiny parts with every kind of trainable tensor."""

    def __init__(
        self, backbone: str, *, rows: int, length: int, fusion: str = "attention", targets: str = "query,value", seed: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        model = ModelSettings(backbone=backbone, rank=2, layers=2, targets=targets, fusion=fusion)  # type: ignore[arg-type]
        self.encoder = Encoder(load_backbone(backbone), model, device=CPU, dtype=torch.float32)
        self.towers = Towers(self.encoder, fusion_named(fusion))
        layout = layout_of(self.encoder.backbone.shape, model)
        self.parameters: dict[str, Tensor] = {
            name: torch.from_numpy(random.normal(0, 0.2, shape).astype(np.float32)) for name, shape in layout.items()
        } | self.towers.fusion.initial({"image": 5, "sound": 3}, 32, random)
        self.mask = torch.arange(length) < torch.from_numpy(random.integers(1, length + 1, (rows, 1)))
        self.hidden = torch.from_numpy(random.normal(0, 1, (rows, length, 32)).astype(np.float32)) * self.mask.unsqueeze(-1)
        self.sources = {
            name: (
                torch.from_numpy(random.normal(0, 1, (rows, width)).astype(np.float32)),
                torch.from_numpy(random.random(rows) < 0.7),
            )
            for name, width in (("image", 5), ("sound", 3))
        }
        width = self.towers.vectors(*self._rows(slice(None)), self.parameters).shape[1]
        self.bank = torch.nn.functional.normalize(torch.from_numpy(random.normal(0, 1, (9, width)).astype(np.float32)), dim=-1)
        self.target = torch.from_numpy(random.integers(0, 9, rows))

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        return self.hidden[rows], self.mask[rows], {name: (v[rows], p[rows]) for name, (v, p) in self.sources.items()}

    def losses(self, rows: slice = slice(None)):  # type: ignore[no-untyped-def]
        def losses(parameters: Mapping[str, Tensor]) -> Tensor:
            vectors = self.towers.vectors(*self._rows(rows), parameters)
            return torch.nn.functional.cross_entropy(vectors @ self.bank.T / 0.1, self.target[rows], reduction="none")

        return losses

    def one_by_one(self, trained: list[str]) -> list[dict[str, Tensor]]:
        """Plain autograd, one user at a time, with no copies at all."""
        found = []
        for row in range(len(self.hidden)):
            leaves = {name: self.parameters[name].clone().requires_grad_() for name in trained}
            loss = self.losses(slice(row, row + 1))({**self.parameters, **leaves}).sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            found.append(dict(zip(leaves, gradients, strict=True)))
        return found


def assert_near(found: Tensor, expected: Tensor, name: str) -> None:
    """Equal up to float32's rounding, by the norm of the whole tensor."""
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-5, name


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 9),
    fusion=st.sampled_from(sorted(FUSIONS)),
    every=st.booleans(),
    seed=st.integers(0, 99),
)
def test_against_plain_autograd(tiny_bert: str, rows: int, length: int, fusion: str, every: bool, seed: int) -> None:
    toy = Toy(
        tiny_bert, rows=rows, length=length, fusion=fusion, targets=",".join(TARGETS) if every else "query,value", seed=seed
    )
    names = list(toy.parameters)
    found = per_user(toy.losses(), toy.parameters, rows)
    for row, expected in enumerate(toy.one_by_one(names)):
        for name in names:
            assert_near(found[name][row], expected[name], name)


def test_frozen_factors_get_no_gradient_and_the_others_do_not_change(tiny_bert: str) -> None:
    toy = Toy(tiny_bert, rows=3, length=6)
    only_b = {name: value for name, value in toy.parameters.items() if name.endswith("lora_B")}
    fixed = {name: value for name, value in toy.parameters.items() if name not in only_b}
    found = per_user(lambda copies: toy.losses()({**fixed, **copies}), only_b, 3)
    both = per_user(toy.losses(), toy.parameters, 3)
    assert set(found) == set(only_b)
    for name in found:
        torch.testing.assert_close(found[name], both[name], atol=1e-6, rtol=1e-4)


def test_against_opacus_on_stock_peft(tiny_bert: str) -> None:
    """GradSampleModule over PEFT over transformers, and DPOptimizer's clipped sum: other people's road to the same number."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
    from peft import LoraConfig, get_peft_model
    from transformers import BertModel

    rows, length, clip = 4, 7, 0.7
    model = ModelSettings(backbone=tiny_bert, rank=2, layers=2, alpha=4.0)
    encoder = Encoder(load_backbone(tiny_bert), model, device=CPU, dtype=torch.float32)
    random = np.random.default_rng(3)
    layout = {name: shape for name, shape in layout_of(encoder.backbone.shape, model).items() if not name.startswith("head")}
    parameters = {name: torch.from_numpy(random.normal(0, 0.2, shape).astype(np.float32)) for name, shape in layout.items()}
    ids = torch.from_numpy(random.integers(5, 80, (rows, length)))
    mask = torch.arange(length) < torch.tensor([[7], [3], [1], [5]])
    direction = torch.from_numpy(random.normal(0, 1, (rows, 32)).astype(np.float32))

    modules = sorted({name.rpartition(".")[0] for name in layout})
    bert = BertModel.from_pretrained(
        tiny_bert, add_pooling_layer=False, attn_implementation="eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    stock = get_peft_model(bert, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=modules))
    named = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): p
        for name, p in stock.named_parameters()
        if p.requires_grad
    }
    assert set(named) == set(layout)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(parameters[name])
    stock.train()
    private = GradSampleModule(stock, strict=False)
    states = private(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    weight = mask.unsqueeze(-1).float()
    (((states * weight).sum(1) / weight.sum(1)) * direction).sum(1).mean().backward()  # Opacus expects a mean over users
    optimizer = DPOptimizer(
        torch.optim.SGD(named.values(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    gradients = {name: p.grad_sample.clone() for name, p in named.items()}
    optimizer.clip_and_accumulate()

    hidden = encoder.trunk(ids, mask)

    def losses(copies: Mapping[str, Tensor]) -> Tensor:
        return (encoder.pooled(Batch(hidden=hidden, mask=mask), copies) * direction).sum(1)

    found = per_user(losses, parameters, rows)
    sums = clipped_sum(losses, parameters, torch.ones(rows, dtype=torch.bool), mechanism(clip=clip))
    for name, parameter in named.items():
        torch.testing.assert_close(found[name], gradients[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(sums[name], parameter.summed_grad, atol=1e-5, rtol=1e-3)


class TestClippedSum:
    @settings(max_examples=15, deadline=None)
    @given(rows=st.integers(0, 5), clip=st.floats(0.01, 5.0), seed=st.integers(0, 99))
    def test_is_the_sum_of_each_users_clipped_gradient(self, tiny_bert: str, rows: int, clip: float, seed: int) -> None:
        filled = max(rows, 1) + 2
        toy = Toy(tiny_bert, rows=filled, length=5, seed=seed)
        names = list(toy.parameters)
        expected = {name: torch.zeros_like(toy.parameters[name]) for name in names}
        for gradients in toy.one_by_one(names)[:rows]:
            norm = torch.cat([gradients[name].flatten() for name in names]).norm()
            for name in names:
                expected[name] += gradients[name] * min(1.0, clip / float(norm))
        found = clipped_sum(toy.losses(), toy.parameters, torch.arange(filled) < rows, mechanism(clip=clip))
        for name in names:
            assert_near(found[name], expected[name], name)

    def test_rows_that_only_fill_contribute_exactly_nothing(self, tiny_bert: str) -> None:
        toy = Toy(tiny_bert, rows=5, length=6)
        real = torch.tensor([True, True, True, False, False])
        before = clipped_sum(toy.losses(), toy.parameters, real, mechanism())
        toy.hidden[3:] = torch.randn(2, 6, 32) * 100
        toy.target[3:] = 8 - toy.target[3:]
        after = clipped_sum(toy.losses(), toy.parameters, real, mechanism())
        assert all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("poison", [float("nan"), float("inf")])
    def test_a_gradient_that_is_not_finite_is_left_out_and_hurts_nobody(self, tiny_bert: str, poison: float) -> None:
        toy = Toy(tiny_bert, rows=3, length=6)
        whole = clipped_sum(toy.losses(), toy.parameters, torch.tensor([True, False, True]), mechanism())
        toy.hidden[1, 0] = poison
        found = clipped_sum(toy.losses(), toy.parameters, torch.ones(3, dtype=torch.bool), mechanism())
        for name in whole:
            assert torch.isfinite(found[name]).all()
            torch.testing.assert_close(found[name], whole[name], atol=1e-6, rtol=1e-5)

    def test_one_user_moves_the_sum_by_at_most_the_clip(self, tiny_bert: str) -> None:
        toy = Toy(tiny_bert, rows=4, length=6)
        real = torch.ones(4, dtype=torch.bool)
        gaps = []
        for left_out in range(4):
            without = real.clone()
            without[left_out] = False
            a, b = (clipped_sum(toy.losses(), toy.parameters, rows, mechanism(clip=0.3)) for rows in (real, without))
            gaps.append(float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm()))
        assert max(gaps) <= 0.3 * (1 + 1e-4)
        assert max(gaps) > 0.29  # the bound is reached: these gradients are larger than the clip


class TestSelfCheck:
    def run(self, toy: Toy, names: list[str], losses=None) -> None:  # type: ignore[no-untyped-def]
        fixed = {name: value for name, value in toy.parameters.items() if name not in names}
        check_gradients(
            lambda copies: (losses or toy.losses())({**fixed, **copies}),
            lambda row: lambda copies: toy.losses(slice(row, row + 1))({**fixed, **copies}),
            toy.parameters,
            names,
            users=len(toy.hidden),
            tolerance=1e-3,
        )

    def test_passes_on_the_real_thing(self, tiny_bert: str) -> None:
        toy = Toy(tiny_bert, rows=3, length=6)
        self.run(toy, [name for name in toy.parameters if not name.startswith("source")])

    def test_notices_gradients_that_mix_users(self, tiny_bert: str) -> None:
        toy = Toy(tiny_bert, rows=3, length=6)

        def mixed(copies: Mapping[str, Tensor]) -> Tensor:
            # What a layer that normalises over the batch would do.
            return toy.losses()({name: value.mean(0, keepdim=True).expand_as(value) for name, value in copies.items()})

        with pytest.raises(PrivacyError, match="differs"):
            self.run(toy, list(toy.parameters), mixed)

    def test_notices_a_tensor_that_is_not_used(self, tiny_bert: str) -> None:
        toy = Toy(tiny_bert, rows=3, length=6)
        toy.parameters["encoder.layer.9.unused"] = torch.ones(2, 2)
        with pytest.raises(PrivacyError, match="no gradient"):
            self.run(toy, list(toy.parameters))
