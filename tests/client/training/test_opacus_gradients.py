"""The two engines, eager and compiled, one sequence a user and several, in float32 and bfloat16: all give one number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

from client.fusion.operators import FUSIONS
from client.privacy.mechanism import Mechanism
from client.training.losses import CLICK_BIAS, Answers, click
from client.training.opacus_gradients import opacus_per_user
from client.training.per_user_gradients import by_sequence, clip, clipped_sum, user_gradients
from shared.base.settings import ModelSettings
from shared.layers.native import build as native
from shared.layers.native import layer as blocked
from shared.layers.torch_compile import MOST_GRAPHS, Compiled
from shared.model.adapter import TARGETS, layout_of
from shared.model.backbone import load_backbone
from shared.model.encoder import Batch, Encoder
from tests.support.bfloat16 import needs_bfloat16

Make = Callable[..., Any]
CPU = torch.device("cpu")


def mechanism(bound: float = 0.7) -> Mechanism:
    return Mechanism(users=100, sample_rate=0.1, clip=bound, noise_multiplier=1.0, dimension=1)


def gap(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Relative distance of all tensors together."""
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    return float(difference / torch.cat([value.flatten() for value in expected.values()]).norm().clamp(min=1e-9))


class TestOpacus:
    @settings(max_examples=12, deadline=None)
    @given(
        rows=st.integers(1, 5),
        length=st.integers(1, 9),
        fusion=st.sampled_from(sorted(FUSIONS)),
        every=st.booleans(),
        bound=st.floats(0.01, 3.0),
        seed=st.integers(0, 99),
    )
    def test_the_same_clipped_sum_on_every_tensor(
        self, make_toy: Make, rows: int, length: int, fusion: str, every: bool, bound: float, seed: int
    ) -> None:
        targets = ",".join(TARGETS) if every else "query,value"
        toy = make_toy(rows=rows, length=length, fusion=fusion, targets=targets, seed=seed)
        real = torch.ones(rows, dtype=torch.bool)
        theirs = opacus_per_user(toy.losses(), toy.parameters, rows)
        ours = user_gradients(toy.losses(), toy.parameters, rows)
        assert theirs.keys() == ours.keys()
        for name in ours:
            assert gap({name: ours[name]}, {name: theirs[name]}) < 1e-3 or float(theirs[name].norm()) < 1e-4, name
        assert gap(clip(ours, real, mechanism(bound)).parts, clip(theirs, real, mechanism(bound)).parts) < 1e-4

    def test_frozen_factors(self, make_toy: Make) -> None:
        toy = make_toy(rows=4, length=6)
        only_b = {name: value for name, value in toy.parameters.items() if name.endswith("lora_B")}
        fixed = {name: value for name, value in toy.parameters.items() if name not in only_b}

        def losses(copies: Mapping[str, Tensor]) -> Tensor:
            return toy.losses()({**fixed, **copies})  # type: ignore[no-any-return]

        theirs, ours = opacus_per_user(losses, only_b, 4), user_gradients(losses, only_b, 4)
        assert set(theirs) == set(ours) == set(only_b)
        assert gap(ours, theirs) < 1e-5

    def test_the_bias_of_clicks(self) -> None:
        random = np.random.default_rng(0)
        scores = torch.from_numpy(random.normal(0, 1, (3, 6)).astype(np.float32))
        answers = Answers(targets=torch.tensor([[0, 2], [1, -1], [5, 4]]), excluded=torch.zeros(3, 6, dtype=torch.bool))
        parameters = {CLICK_BIAS: torch.tensor([0.3])}

        def losses(copies: Mapping[str, Tensor]) -> Tensor:
            return click(scores, answers, copies)

        assert gap(user_gradients(losses, parameters, 3), opacus_per_user(losses, parameters, 3)) < 1e-6

    def test_its_hooks_are_gone_afterwards(self, make_toy: Make) -> None:
        toy = make_toy(rows=2, length=4)
        first = opacus_per_user(toy.losses(), toy.parameters, 2)
        assert gap(opacus_per_user(toy.losses(), toy.parameters, 2), first) == 0


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="the kernels are for processors with AVX-512 and bfloat16")
class TestKernels:
    """The code path of a processor with bfloat16, source tokens and all, against Opacus in float32."""

    @pytest.fixture(autouse=True)
    def there(self) -> None:
        assert native.kernel_obstacle() == ""

    @pytest.mark.parametrize("fusion", sorted(FUSIONS))
    @pytest.mark.parametrize("targets", ["query,value", ",".join(TARGETS)])
    def test_the_same_clipped_sum_on_every_tensor(
        self, make_toy: Make, kernel_bert: str, monkeypatch: pytest.MonkeyPatch, fusion: str, targets: str
    ) -> None:
        how = {"backbone": kernel_bert, "rows": 9, "length": 21, "fusion": fusion, "targets": targets}
        exact, half = make_toy(**how), make_toy(**how, dtype=torch.bfloat16)
        toy = make_toy(**how, dtype=torch.bfloat16, kernels=True)
        toy.bank = half.bank = exact.bank
        for each in (toy, half, exact):
            # As small as training has them: larger ones make a tiny model's gradients chaotic, and bfloat16 loses them.
            each.parameters = {name: 0.25 * value for name, value in each.parameters.items()}
        ran = []
        layer = blocked.native_layer
        monkeypatch.setattr(blocked, "native_layer", lambda *args: ran.append(1) or layer(*args))
        ours, torchs = (user_gradients(of.losses(), of.parameters, 9) for of in (toy, half))
        theirs = opacus_per_user(exact.losses(), exact.parameters, 9)
        assert len(ran) == 2, "every trained layer ran in the kernels, and torch's did not"
        for name, value in theirs.items():
            assert gap({name: ours[name]}, {name: value}) < 2 * gap({name: torchs[name]}, {name: value}) + 0.03, name
        assert gap(ours, theirs) < 1.3 * gap(torchs, theirs) + 0.005 < 0.05
        real = torch.arange(9) != 4
        sums, halves, truth = (clip(each, real, mechanism(0.1)).parts for each in (ours, torchs, theirs))
        assert gap(sums, truth) < 1.3 * gap(halves, truth) + 0.005 < 0.05
        moved = clip({name: value[real] for name, value in ours.items()}, real[real], mechanism(0.1)).parts
        assert gap(sums, moved) < 1e-5, "what fills a fixed shape weighs nothing"

    def test_micro_batches_give_the_same_sum(self, make_toy: Make, kernel_bert: str) -> None:
        toy = make_toy(kernel_bert, rows=7, length=12, dtype=torch.bfloat16, kernels=True)
        whole = clipped_sum(toy.losses(), toy.parameters, torch.ones(7, dtype=torch.bool), mechanism())
        parts = [slice(0, 3), slice(3, 4), slice(4, 7)]
        first, *rest = (
            clipped_sum(toy.losses(part), toy.parameters, torch.ones(part.stop - part.start, dtype=torch.bool), mechanism())
            for part in parts
        )
        for part in rest:
            first = first.plus(part)
        assert gap(first.parts, whole.parts) < 0.01 and first.bound == whole.bound

    def test_several_sequences_of_a_user(self, make_toy: Make, kernel_bert: str) -> None:
        toy = make_toy(kernel_bert, rows=6, length=9, dtype=torch.bfloat16, kernels=True)
        owner = torch.tensor([0, 1, 1, 0, 2, 1])
        found = user_gradients(by_sequence(toy.losses(), owner, 3), toy.parameters, 3)
        each = user_gradients(toy.losses(), toy.parameters, 6)
        expected = {name: torch.stack([value[owner == user].mean(0) for user in range(3)]) for name, value in each.items()}
        assert gap(found, expected) < 0.01


class TestSeveralSequences:
    @settings(max_examples=12, deadline=None)
    @given(owners=st.lists(st.integers(0, 3), min_size=1, max_size=8), length=st.integers(1, 8), seed=st.integers(0, 99))
    def test_a_user_is_an_index_into_the_copies(self, make_toy: Make, owners: list[int], length: int, seed: int) -> None:
        toy = make_toy(rows=len(owners), length=length, seed=seed)
        owner = torch.tensor(owners)
        found = user_gradients(by_sequence(toy.losses(), owner, 4), toy.parameters, 4)
        each = toy.one_by_one(list(toy.parameters))
        for user in range(4):
            own = [each[place] for place, name in enumerate(owners) if name == user]
            for name, value in found.items():
                expected = torch.stack([one[name] for one in own]).mean(0) if own else torch.zeros_like(value[user])
                torch.testing.assert_close(value[user], expected, atol=1e-4, rtol=2e-3, msg=name)

    def test_one_user_moves_the_sum_by_the_clip_however_many_sequences_he_has(self, make_toy: Make) -> None:
        toy = make_toy(rows=7, length=5)
        toy.bank = toy.bank * 30  # gradients well above the bound
        real = torch.ones(2, dtype=torch.bool)
        owner = torch.tensor([0, 1, 1, 1, 1, 1, 1])
        both = clipped_sum(by_sequence(toy.losses(), owner, 2), toy.parameters, real, mechanism(0.1)).parts
        alone = clipped_sum(by_sequence(toy.losses(slice(0, 1)), owner[:1], 2), toy.parameters, real, mechanism(0.1)).parts
        moved = torch.cat([(both[name] - alone[name]).flatten() for name in both]).norm()
        assert 0.0999 < float(moved) < 0.1001


def parts(backbone: str, *, dtype: torch.dtype, compiled: bool = False, rows: int = 8) -> Callable[[int], tuple[Any, Any]]:
    """Makes losses of `rows` sequences of a length, and their parameters."""
    model = ModelSettings(backbone=backbone, rank=2, layers=2)
    encoder = Encoder(load_backbone(backbone), model, device=CPU, dtype=dtype, compiled=compiled)

    def make(length: int) -> tuple[Any, Any]:
        random = np.random.default_rng(length)
        layout = layout_of(encoder.backbone.shape, model)
        parameters = {name: torch.from_numpy(random.normal(0, 0.2, shape).astype(np.float32)) for name, shape in layout.items()}
        ids = torch.from_numpy(random.integers(5, 80, (rows, length)))
        # At 16 every sequence is full, for which attention has a branch of its own.
        mask = torch.arange(length) < torch.from_numpy(random.integers(length if length == 16 else 1, length + 1, (rows, 1)))
        batch = Batch(hidden=encoder.trunk(ids, mask), mask=mask)
        direction = torch.from_numpy(random.normal(0, 1, (rows, 32)).astype(np.float32))
        return (lambda copies: (encoder.pooled(batch, copies) * direction).sum(1)), parameters

    return make


class TestCompiled:
    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
    def test_compiled_and_eager_agree_on_every_tensor(self, tiny_bert: str, dtype: torch.dtype) -> None:
        counters["graph_break"].clear()
        for length in (4, 9, 16):
            losses, parameters = parts(tiny_bert, dtype=dtype)(length)
            eager = user_gradients(losses, parameters, 8)
            losses, _ = parts(tiny_bert, dtype=dtype, compiled=True)(length)
            found = user_gradients(losses, parameters, 8)
            for name in eager:
                assert gap({name: found[name]}, {name: eager[name]}) < (1e-4 if dtype == torch.float32 else 0.1), name
        assert not counters["graph_break"]

    def test_no_stream_of_shapes_compiles_for_ever(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        made: list[object] = []
        monkeypatch.setattr(torch, "compile", lambda function, dynamic: (made.append(dynamic), function)[1])
        function = Compiled(lambda batch, adapter: batch.hidden.sum() + adapter["a"].sum())
        with caplog.at_level(logging.INFO, "fedfuse.compile"):
            for _ in range(2):
                for size in range(1, MOST_GRAPHS + 6):
                    hidden = torch.ones(size, 2, 3)
                    batch = Batch(hidden=hidden, mask=torch.ones(size, 2, dtype=torch.bool))
                    assert float(function(batch, {"a": torch.ones(2)})) == 6 * size + 2
        assert made == [False] and function.graphs == MOST_GRAPHS
        assert sum("compiled graph" in record.message for record in caplog.records) == MOST_GRAPHS


@needs_bfloat16
def test_bfloat16_is_near_float32_on_every_tensor(tiny_bert: str) -> None:
    losses, parameters = parts(tiny_bert, dtype=torch.float32)(9)
    exact = user_gradients(losses, parameters, 8)
    losses, _ = parts(tiny_bert, dtype=torch.bfloat16)(9)
    found = user_gradients(losses, parameters, 8)
    for name in exact:
        assert found[name].dtype == torch.float32
        assert gap({name: found[name]}, {name: exact[name]}) < 0.1, name
