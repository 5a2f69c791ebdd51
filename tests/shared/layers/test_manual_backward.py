"""The layer written out against the same layer in small steps that autograd differentiates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared.base.settings import ModelSettings
from shared.layers import manual_backward as layer
from shared.layers.frozen_maps import FrozenMap, affine, affine_gelu
from shared.layers.lora import Change
from shared.model import encoder as encoder_module
from shared.model.adapter import TARGETS
from shared.model.backbone import load_backbone
from shared.model.encoder import Batch, Encoder
from tests.support.bfloat16 import needs_bfloat16

CPU = torch.device("cpu")
HIDDEN = 32


def encoder_of(folder: str, dtype: torch.dtype = torch.float64) -> Encoder:
    return Encoder(load_backbone(folder), ModelSettings(backbone=folder, layers=2, rank=3), device=CPU, dtype=dtype)


def factors_of(encoder: Encoder, targets: list[str], *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {
        name: encoder.backbone.weights[f"{name}.weight"].shape
        for place in (1, 2)
        for name in (f"encoder.layer.{place}.{TARGETS[target]}" for target in targets)
    }
    factors = {f"{name}.lora_A": 0.3 * torch.randn(3, shape[1], dtype=dtype) for name, shape in shapes.items()}
    return factors | {f"{name}.lora_B": 0.3 * torch.randn(shape[0], 3, dtype=dtype) for name, shape in shapes.items()}


def gradients(encoder: Encoder, batch: Batch, copies: dict[str, Tensor], direction: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [batch.hidden] if batch.hidden.requires_grad else []
    leaves += [value for value in copies.values() if value.requires_grad]
    pooled = encoder.pooled(batch, copies)
    return pooled.detach(), list(torch.autograd.grad((pooled * direction).sum(), leaves, materialize_grads=True))


@contextmanager
def small_steps(*, merged: bool = False) -> Iterator[None]:
    """The encoder goes the way that autograd differentiates, with every change beside its map, or merged into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module.layer, "backward_suits", lambda *_: False)
        if not merged:
            patch.setattr(Change, "for_all", property(lambda _: False))
        yield


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 9),
    targets=st.lists(st.sampled_from(sorted(TARGETS)), unique=True, min_size=1),
    below=st.booleans(),
    frozen=st.sampled_from(["", "lora_A", "lora_B"]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_small_steps(
    tiny_bert: str, rows: int, length: int, targets: list[str], below: bool, frozen: str, seed: int
) -> None:
    torch.manual_seed(seed)
    encoder = encoder_of(tiny_bert)
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1))
    batch = Batch(hidden=torch.randn(rows, length, HIDDEN, dtype=torch.float64, requires_grad=below), mask=mask)
    copies = {
        name: value.expand(rows, *value.shape).requires_grad_(not (frozen and name.endswith(frozen)))
        for name, value in factors_of(encoder, targets).items()
    }
    direction = torch.randn(rows, HIDDEN)
    found, found_gradients = gradients(encoder, batch, copies, direction)
    with small_steps(merged=True):
        _, merged_gradients = gradients(encoder, batch, copies, direction)
    with small_steps():
        expected, expected_gradients = gradients(encoder, batch, copies, direction)
    torch.testing.assert_close(found, expected)
    for one, two, other in zip(found_gradients, merged_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(two, other, atol=1e-6, rtol=1e-6)


def test_a_residual_for_all_goes_with_copies(tiny_bert: str) -> None:
    torch.manual_seed(0)
    encoder = encoder_of(tiny_bert)
    names = ["query", "output"]
    copies = {name: value.expand(3, *value.shape).requires_grad_() for name, value in factors_of(encoder, names).items()}
    residuals = {name.replace("lora_", "residual_"): value for name, value in factors_of(encoder, names).items()}
    batch = Batch(hidden=torch.randn(3, 5, HIDDEN, dtype=torch.float64), mask=torch.ones(3, 5, dtype=torch.bool))
    direction = torch.randn(3, HIDDEN)
    found, found_gradients = gradients(encoder, batch, copies | residuals, direction)
    with small_steps():
        expected, expected_gradients = gradients(encoder, batch, copies | residuals, direction)
    without = encoder.pooled(batch, copies)
    assert not torch.allclose(found, without)
    torch.testing.assert_close(found, expected)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@needs_bfloat16
def test_in_bfloat16_it_is_as_near_to_the_truth_as_small_steps(tiny_bert: str) -> None:
    torch.manual_seed(0)
    exact, half = encoder_of(tiny_bert), encoder_of(tiny_bert, torch.bfloat16)
    factors = factors_of(exact, ["query", "value", "output"], dtype=torch.float32)
    hidden, mask, direction = torch.randn(8, 12, HIDDEN), torch.ones(8, 12, dtype=torch.bool), torch.randn(8, HIDDEN)

    def of(encoder: Encoder) -> Tensor:
        copies = {name: value.expand(8, *value.shape).requires_grad_() for name, value in factors.items()}
        _, found = gradients(encoder, Batch(hidden=hidden, mask=mask), copies, direction)
        return torch.cat([gradient.flatten() for gradient in found]).double()

    truth, written = of(exact), of(half)
    with small_steps(merged=True):
        merged = of(half)
    with small_steps():
        steps = of(half)
    assert not torch.equal(written, steps)
    assert (written - truth).norm() <= 1.2 * (steps - truth).norm()
    assert (merged - truth).norm() <= 1.2 * (steps - truth).norm()


class TestWhatSuits:
    X = torch.zeros(4, 2, 8)

    def change(self, **factors: Any) -> list[list[Change]]:
        given = {"a": torch.zeros(3, 8), "b": torch.zeros(8, 3), **factors}
        return [[Change(**given, scale=1.0, start=0, stop=8)], [], [], []]

    def test_factors_given_once_and_copies_of_one(self) -> None:
        assert layer.backward_suits(self.X, self.change())
        assert layer.backward_suits(self.X, self.change(a=torch.zeros(3, 8).expand(4, 3, 8).requires_grad_()))

    def test_not_copies_that_may_differ(self) -> None:
        assert not layer.backward_suits(self.X, self.change(a=torch.zeros(4, 3, 8)))

    def test_not_one_factor_for_all_that_is_to_be_differentiated(self) -> None:
        trained = torch.zeros(3, 8, requires_grad=True)
        assert not layer.backward_suits(self.X, self.change(a=trained))
        with torch.no_grad():
            assert layer.backward_suits(self.X, self.change(a=trained))

    def test_not_a_module_that_stands_for_a_factor(self) -> None:
        assert not layer.backward_suits(self.X, self.change(a=torch.nn.Linear(8, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_products_with_what_follows_them(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    frozen = FrozenMap(weight=torch.randn(24, 16, dtype=dtype), bias=torch.randn(24, dtype=dtype), parts=("one",))
    x, plus = torch.randn(rows, 16, dtype=dtype), torch.randn(rows, 24, dtype=dtype)
    before = plus.clone()
    exact = x.double() @ frozen.weight.double().T + frozen.bias.double()
    near = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.02}
    torch.testing.assert_close(affine(x, frozen).double(), exact, **near)
    torch.testing.assert_close(affine(x, frozen, plus=plus).double(), exact + plus.double(), **near)
    torch.testing.assert_close(affine_gelu(x, frozen).double(), torch.nn.functional.gelu(exact), **near)
    assert torch.equal(plus, before)
