"""Per-user gradients: against plain autograd, against Opacus on stock PEFT, and under everything that could bend them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.fusion.operators import FUSIONS
from client.privacy.mechanism import Mechanism
from client.training import per_user_gradients as gradients
from client.training.per_user_gradients import Clip, Losses, user_gradients
from shared.base.settings import ModelSettings
from shared.model.adapter import TARGETS, layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import Batch, Encoder

CPU = torch.device("cpu")
Make = Callable[..., Any]
"""Makes a toy model (conftest)."""


def mechanism(*, clip: float = 1.0, noise: float = 1.0) -> Mechanism:
    return Mechanism(users=100, sample_rate=0.1, clip=clip, noise_multiplier=noise, dimension=1)


def clipped_sum(losses: Losses, parameters: Mapping[str, Tensor], real: Tensor, bound: Mechanism) -> dict[str, Tensor]:
    parts = gradients.clipped_sum(losses, parameters, real, bound).parts
    assert all(part.dtype == torch.float64 for part in parts.values())
    return {name: part.float() for name, part in parts.items()}


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
def test_against_plain_autograd(make_toy: Make, rows: int, length: int, fusion: str, every: bool, seed: int) -> None:
    targets = ",".join(TARGETS) if every else "query,value"
    # In float32 attention alone is off by up to 1e-3 in such a random model, on either path.
    toy = make_toy(rows=rows, length=length, fusion=fusion, targets=targets, seed=seed, dtype=torch.float64)
    names = list(toy.parameters)
    found = user_gradients(toy.losses(), toy.parameters, rows)
    for row, expected in enumerate(toy.one_by_one(names)):
        for name in names:
            assert_near(found[name][row], expected[name], name)


def test_frozen_factors_get_no_gradient_and_the_others_do_not_change(make_toy: Make) -> None:
    toy = make_toy(rows=3, length=6)
    only_b = {name: value for name, value in toy.parameters.items() if name.endswith("lora_B")}
    fixed = {name: value for name, value in toy.parameters.items() if name not in only_b}
    found = user_gradients(lambda copies: toy.losses()({**fixed, **copies}), only_b, 3)
    both = user_gradients(toy.losses(), toy.parameters, 3)
    assert set(found) == set(only_b)
    for name in found:
        torch.testing.assert_close(found[name], both[name], atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_against_opacus_on_stock_peft(tiny_bert: str) -> None:
    """GradSampleModule over PEFT over transformers, and DPOptimizer's clipped sum: an independent way to the same number."""
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

    found = user_gradients(losses, parameters, rows)
    sums = clipped_sum(losses, parameters, torch.ones(rows, dtype=torch.bool), mechanism(clip=clip))
    for name, parameter in named.items():
        torch.testing.assert_close(found[name], gradients[name], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(sums[name], parameter.summed_grad, atol=1e-5, rtol=1e-3)


class TestClippedSum:
    @settings(max_examples=15, deadline=None)
    @given(rows=st.integers(0, 5), clip=st.floats(0.01, 5.0), seed=st.integers(0, 99))
    def test_is_the_sum_of_each_users_clipped_gradient(self, make_toy: Make, rows: int, clip: float, seed: int) -> None:
        filled = max(rows, 1) + 2
        toy = make_toy(rows=filled, length=5, seed=seed)
        names = list(toy.parameters)
        expected = {name: torch.zeros_like(toy.parameters[name]) for name in names}
        for each in toy.one_by_one(names)[:rows]:
            norm = torch.cat([each[name].flatten() for name in names]).norm()
            for name in names:
                expected[name] += each[name] * min(1.0, clip / float(norm))
        found = clipped_sum(toy.losses(), toy.parameters, torch.arange(filled) < rows, mechanism(clip=clip))
        for name in names:
            assert_near(found[name], expected[name], name)

    def test_rows_that_only_fill_contribute_exactly_nothing(self, make_toy: Make) -> None:
        toy = make_toy(rows=5, length=6)
        real = torch.tensor([True, True, True, False, False])
        before = clipped_sum(toy.losses(), toy.parameters, real, mechanism())
        toy.hidden[3:] = torch.randn(2, 6, 32) * 100
        toy.target[3:] = 8 - toy.target[3:]
        after = clipped_sum(toy.losses(), toy.parameters, real, mechanism())
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_batch_of_nobody_is_zero(self, make_toy: Make) -> None:
        toy = make_toy(rows=2, length=5)
        nobody = slice(0, 0)
        assert all(
            value.shape == (0, *toy.parameters[name].shape)
            for name, value in user_gradients(toy.losses(nobody), toy.parameters, 0).items()
        )
        for losses, real in ((toy.losses(nobody), torch.zeros(0)), (toy.losses(), torch.zeros(2))):
            found = clipped_sum(losses, toy.parameters, real.bool(), mechanism())
            assert all(torch.equal(found[name], torch.zeros_like(value)) for name, value in toy.parameters.items())

    @pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("noise", [1.0, 0.0], ids=["private", "without privacy"])
    def test_a_gradient_that_is_not_finite_is_left_out_and_hurts_nobody(
        self, make_toy: Make, poison: float, noise: float
    ) -> None:
        toy = make_toy(rows=4, length=6)
        without = torch.tensor([True, False, True, True])
        expected = clipped_sum(toy.losses(), toy.parameters, without, mechanism(noise=noise))
        toy.hidden[1, 0] = poison
        assert not all(torch.isfinite(value[1]).all() for value in user_gradients(toy.losses(), toy.parameters, 4).values())
        found = clipped_sum(toy.losses(), toy.parameters, torch.ones(4, dtype=torch.bool), mechanism(noise=noise))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class TestCompiledClip:
    def test_asks_no_gpu_and_leaves_out_what_is_not_finite(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # What is compiled, not compiled.
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        self.compare()

    @pytest.mark.slow
    def test_compiled_it_is_the_same(self) -> None:
        self.compare()

    def compare(self) -> None:
        each = {"a": torch.randn(6, 3, 40), "b": torch.randn(6, 5)}
        each["a"][1, 0, 0] = torch.nan
        each["b"][2, 4] = torch.inf
        real = torch.tensor([True, True, True, True, True, False])
        expected = Clip()(each, real, mechanism(clip=2.0))
        found = Clip(compiled=True)(each, real, mechanism(clip=2.0))
        assert all(torch.isfinite(total).all() for total in expected.parts.values())
        assert found.bound == expected.bound == 2.0
        for name, total in expected.parts.items():
            torch.testing.assert_close(found.parts[name], total)


ClippedSum = Callable[..., dict[str, Tensor]]


def greatest_influence(toy: Any, method: ClippedSum, clip: float) -> float:
    """L2 norm by which leaving one user out moves the sum, at most over the users."""
    real = torch.ones(len(toy.hidden), dtype=torch.bool)
    gaps = []
    for left_out in range(len(real)):
        without = real.clone()
        without[left_out] = False
        a, b = (method(toy.losses(), toy.parameters, rows, mechanism(clip=clip)) for rows in (real, without))
        gaps.append(float(torch.cat([(a[name] - b[name]).flatten() for name in a]).norm()))
    return max(gaps)


def not_clipped(losses: Any, parameters: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism) -> dict[str, Tensor]:
    gradients = user_gradients(losses, parameters, len(real))
    return {name: torch.einsum("n,n...->...", real.float(), gradient) for name, gradient in gradients.items()}


def clipped_tensor_by_tensor(
    losses: Any, parameters: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism
) -> dict[str, Tensor]:
    found = {}
    for name, gradient in user_gradients(losses, parameters, len(real)).items():
        weights = mechanism.weights(gradient.flatten(1).square().sum(1)) * real
        found[name] = torch.einsum("n,n...->...", weights, gradient)
    return found


def clipped_as_a_batch(losses: Any, parameters: Mapping[str, Tensor], real: Tensor, mechanism: Mechanism) -> dict[str, Tensor]:
    total = not_clipped(losses, parameters, real, mechanism)
    norm = torch.cat([value.flatten() for value in total.values()]).norm()
    return {name: value * min(1.0, mechanism.clip * int(real.sum()) / float(norm)) for name, value in total.items()}


class TestSensitivity:
    clip = 0.3

    def test_one_user_moves_the_sum_by_at_most_the_clip(self, make_toy: Make) -> None:
        found = greatest_influence(make_toy(rows=4, length=6), clipped_sum, self.clip)
        assert found <= self.clip * (1 + 1e-4)
        assert found > self.clip * 0.97  # the bound is reached: these gradients are larger than the clip

    @pytest.mark.parametrize("broken", [not_clipped, clipped_tensor_by_tensor, clipped_as_a_batch])
    def test_and_the_check_notices_other_clipping(self, make_toy: Make, broken: ClippedSum) -> None:
        assert greatest_influence(make_toy(rows=4, length=6), broken, self.clip) > self.clip * (1 + 1e-4)


def test_a_second_road_by_functional_transforms(make_toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.func over one user at a time, and torch's own attention in place of ours."""
    from torch.func import grad, vmap

    def stock(stacked: Tensor, mask: Tensor, heads: int) -> Tensor:
        n, t, width = stacked.shape
        q, k, v = stacked.view(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return mixed.transpose(1, 2).reshape(n, t, width // 3)

    toy = make_toy(rows=3, length=5, fusion="gated")
    names = list(toy.parameters)

    def loss(
        parameters: dict[str, Tensor], hidden: Tensor, mask: Tensor, sources: dict[str, tuple[Tensor, Tensor]], target: Tensor
    ) -> Tensor:
        one = {name: (values[None], present[None]) for name, (values, present) in sources.items()}
        vectors = toy.towers.vectors(hidden[None], mask[None], one, parameters)
        return torch.nn.functional.cross_entropy(vectors @ toy.bank.T / 0.5, target[None])

    with monkeypatch.context() as patch:
        patch.setattr("shared.model.encoder.attend", stock)
        expected = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(toy.parameters, toy.hidden, toy.mask, toy.sources, toy.target)
    found = user_gradients(toy.losses(), toy.parameters, 3)
    for name in names:
        assert_near(found[name], expected[name], name)
