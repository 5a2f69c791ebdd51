"""The native kernels against the layer written out, in float64 and in their own bfloat16."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from client.training.gradient_check import check_gradients
from client.training.per_user_gradients import Losses
from shared.base.errors import PrivacyError
from shared.layers import manual_backward as layer
from shared.layers.frozen_maps import FrozenLayer, FrozenMap, FrozenNorm
from shared.layers.lora import Change
from shared.layers.native import build as native
from shared.layers.native import layer as blocked
from shared.model.backbone import BackboneShape

pytestmark = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="the kernels are for processors with AVX-512 and bfloat16"
)
HALF = torch.bfloat16
WIDTHS = [(32, 2, 32), (64, 2, 96), (96, 2, 160), (128, 2, 64), (64, 4, 288)]
"""Hidden, heads, inner: blocks of 64 and of 32 columns, heads of 16, 32, 48 and 64."""


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    assert native.kernel_obstacle() == ""


WAYS: dict[object, tuple[Any, Any]] = {
    layer: (layer.backward_suits, layer.backward_layer),
    blocked: (blocked.kernels_suit, blocked.native_layer),
}
"""Module -> whether it serves, and the layer itself."""


@dataclass
class Case:
    """A random layer, its input, and copies of factors for each example."""

    hidden: int
    heads: int
    inner: int
    n: int
    t: int
    targets: Sequence[int]
    rank: int = 3
    frozen: str = ""
    below: bool = True

    def __post_init__(self) -> None:
        h, k = self.hidden, self.inner
        sizes = ((3 * h, h), (h, h), (k, h), (h, k))
        self.maps = [(torch.randn(rows, columns) / columns**0.5, 0.1 * torch.randn(rows)) for rows, columns in sizes]
        self.norms = [(1 + 0.1 * torch.randn(h), 0.1 * torch.randn(h)) for _ in range(2)]
        self.x = torch.randn(self.n, self.t, h)
        self.mask = torch.arange(self.t) < torch.randint(1, self.t + 1, (self.n, 1))
        self.direction = torch.randn(self.n, self.t, h)
        # Targets 0, 1, 2 are query, key and value; 3, 4, 5 the other maps.
        self.places = [(0, part * h, (part + 1) * h) for part in range(3)] + [(1, 0, h), (2, 0, k), (3, 0, h)]
        self.factors = []
        for target in self.targets:
            of, start, stop = self.places[target]
            self.factors += [
                torch.randn(self.rank, sizes[of][1]) / sizes[of][1] ** 0.5,
                0.3 * torch.randn(stop - start, self.rank),
            ]

    def of(self, module: object, dtype: torch.dtype, x: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output, and the gradients of x (if asked for) and of every example's copies; weights as bfloat16 has them."""
        frozen, changes, copies = _parts(self, dtype)
        given = (self.x if x is None else x).to(HALF).to(dtype).requires_grad_(self.below)
        suits, run = WAYS[module]
        assert suits(given, changes)
        out: Tensor = run(given, self.mask, frozen, changes)
        leaves = [value for value in (given, *copies) if value.requires_grad]
        found = torch.autograd.grad((out * self.direction.to(dtype)).sum(), leaves, materialize_grads=True) if leaves else ()
        return out.detach(), list(found)


def gap(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm().clamp(min=1e-9))


@settings(max_examples=60, deadline=None)
@given(
    widths=st.sampled_from(WIDTHS),
    n=st.integers(1, 5),
    t=st.integers(1, 70),
    targets=st.lists(st.integers(0, 5), unique=True, max_size=6),
    rank=st.sampled_from([1, 3, 8, 16, 20]),
    frozen=st.sampled_from(["", "a", "b"]),
    below=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_over_all_shapes(
    widths: tuple[int, int, int], n: int, t: int, targets: list[int], rank: int, frozen: str, below: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    case = Case(*widths, n=n, t=t, targets=targets, rank=rank, frozen=frozen, below=below)
    out, found = case.of(blocked, HALF)
    theirs, others = case.of(layer, HALF)
    truth, expected = case.of(layer, torch.float64)
    # Where changes are large bfloat16 itself is far off, torch's layer by .033 in one case of 300.
    assert gap(out, truth) <= 2 * gap(theirs, truth) + 0.005
    for one, other, exact in zip(found, others, expected, strict=True):
        assert one.shape == exact.shape
        assert one.dtype == other.dtype
        # Of few tokens one rounding may be most of it, in torch's as in ours.
        assert gap(one, exact) <= 4 * gap(other, exact) + 0.02


def test_on_the_whole_they_are_nearer_to_the_truth_than_torchs_bfloat16() -> None:
    gaps = []
    for seed in range(20):
        torch.manual_seed(seed)
        case = Case(*WIDTHS[seed % 5], n=4, t=8 + 2 * seed, targets=range(6), rank=8)
        (out, found), (torchs, others), (truth, expected) = (
            case.of(*how) for how in ((blocked, HALF), (layer, HALF), (layer, torch.float64))
        )
        gaps += [
            (gap(one, exact), gap(other, exact))
            for one, other, exact in zip([out, *found], [torchs, *others], [truth, *expected], strict=True)
        ]
    ours, theirs = torch.tensor(gaps).mean(0).tolist()
    assert ours < theirs


@pytest.mark.parametrize("t", [64, 200])
def test_a_long_text_and_many_rows(t: int) -> None:
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=9, t=t, targets=[0, 2], rank=8)
    out, found = case.of(blocked, HALF)
    truth, expected = case.of(layer, torch.float64)
    assert gap(out, truth) < 0.01
    assert max(gap(one, exact) for one, exact in zip(found, expected, strict=True)) < 0.02


def test_threads_change_nothing_beyond_rounding() -> None:
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=7, t=33, targets=[0, 2], rank=8)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        out, found = case.of(blocked, HALF)
        torch.set_num_threads(2)
        again, others = case.of(blocked, HALF)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(out, again, atol=0.02, rtol=0.02)
    for one, other in zip(found, others, strict=True):
        assert gap(one, other.double()) < 0.01


def test_no_example_knows_of_another() -> None:
    """One whose numbers are no numbers leaves those of the others as they were, to the bit."""
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=6, t=20, targets=[0, 1, 2, 3, 4, 5])
    out, found = case.of(blocked, HALF)
    spoilt = case.x.clone()
    spoilt[2] = torch.nan
    other, others = case.of(blocked, HALF, spoilt)
    rest = torch.arange(6) != 2
    assert torch.equal(out[rest], other[rest])
    for one, two in zip(found, others, strict=True):
        assert torch.equal(one[rest], two[rest])
        assert torch.isnan(two[2]).any()


def test_what_may_not_be_attended_to_has_exactly_no_part() -> None:
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=4, t=20, targets=[0, 2])
    case.direction[~case.mask] = 0.0
    out, found = case.of(blocked, HALF)
    moved = torch.where(case.mask[..., None], case.x, 100 * torch.randn_like(case.x))
    other, others = case.of(blocked, HALF, moved)
    assert torch.equal(out[case.mask], other[case.mask])
    for one, two in zip(found, others, strict=True):
        assert torch.equal(one, two)


def test_an_example_without_a_gradient_gets_exactly_none() -> None:
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=4, t=20, targets=[0, 1, 2, 3, 4, 5])
    case.direction[1] = 0.0
    _, found = case.of(blocked, HALF)
    assert all(not one[1].any() and one[0].any() for one in found)


def test_steps_share_memory_one_after_the_other_and_not_at_once() -> None:
    torch.manual_seed(0)
    cases = [Case(128, 2, 512, n=16, t=64, targets=[0, 2], below=False) for _ in range(2)]
    expected = [case.of(blocked, HALF) for case in cases]
    assert not torch.equal(expected[0][0], expected[1][0])
    outs, leaves = [], []
    for case in cases:  # both ways forward before any way back
        frozen, changes, copies = _parts(case)
        leaves.append(copies)
        outs.append(blocked.native_layer(case.x.to(HALF), case.mask, frozen, changes))
    for case, out, copies, (value, gradients) in reversed(list(zip(cases, outs, leaves, expected, strict=True))):
        found = torch.autograd.grad((out * case.direction.to(HALF)).sum(), copies)
        assert torch.equal(out, value)
        assert all(torch.equal(one, other) for one, other in zip(found, gradients, strict=True))


def test_threads_that_end_give_their_memory_back() -> None:
    torch.manual_seed(0)
    case = Case(128, 2, 512, n=8, t=64, targets=[0, 2])

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def run(times: int) -> None:
        for _ in range(times):
            thread = threading.Thread(target=case.of, args=(blocked, HALF))
            thread.start()
            thread.join()

    run(5)
    before = resident()
    run(30)
    # A thread's scratch is two huge pages and more.
    assert resident() - before < 30 << 20


def test_without_a_gradient_it_is_the_same_and_nothing_is_kept() -> None:
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=3, t=9, targets=[0, 2])
    frozen, changes, _ = _parts(case)
    with torch.no_grad():
        quiet = blocked.native_layer(case.x.to(HALF), case.mask, frozen, changes)
    assert quiet.grad_fn is None
    assert torch.equal(quiet, blocked.native_layer(case.x.to(HALF), case.mask, frozen, changes))


def test_no_example_at_all() -> None:
    case = Case(64, 2, 96, n=0, t=5, targets=[])
    frozen, changes, _ = _parts(case)
    assert blocked.native_layer(case.x.to(HALF), case.mask, frozen, changes).shape == (0, 5, 64)


def test_a_residual_for_all_goes_with_copies() -> None:
    torch.manual_seed(0)
    case = Case(64, 2, 96, n=3, t=9, targets=[0])
    frozen, changes, copies = _parts(case)
    beside = Change(a=torch.randn(5, 64) / 8, b=0.3 * torch.randn(64, 5), scale=1.0, start=0, stop=64)
    both = [[*changes[0], beside], *changes[1:]]
    assert blocked.kernels_suit(case.x.to(HALF), both)

    def run(of: object, dtype: torch.dtype) -> list[Tensor]:
        out = WAYS[of][1](case.x.to(dtype), case.mask, frozen if dtype == HALF else _parts(case, dtype)[0], both)
        return [out.detach(), *torch.autograd.grad((out * case.direction.to(dtype)).sum(), copies)]

    for one, other in zip(run(blocked, HALF), run(layer, torch.float32), strict=True):
        assert gap(one, other.double()) < 0.03


@pytest.mark.parametrize("t", [1, 7, 40])
def test_mean_over_the_tokens_that_count(t: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, t, 96).to(HALF).requires_grad_()
    mask = torch.rand(5, t) < 0.6
    mask[0] = False
    direction = torch.randn(5, 96)
    found = blocked.mean(x, mask)
    (gradient,) = torch.autograd.grad((found * direction).sum(), x)
    exact = x.detach().double().requires_grad_()
    truth = (exact * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    (expected,) = torch.autograd.grad((truth * direction).sum(), exact)
    torch.testing.assert_close(found, truth.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected.to(HALF), atol=1e-3, rtol=1e-2)
    assert not found[0].any()
    assert not gradient[~mask].any()


class TestWhatSuits:
    X = torch.zeros(4, 2, 64, dtype=HALF)

    def change(self, rank: int = 3, **factors: Tensor) -> list[list[Change]]:
        given = {"a": torch.zeros(rank, 64), "b": torch.zeros(64, rank), **factors}
        return [[Change(**given, scale=1.0, start=0, stop=64)], [], [], []]

    def test_bfloat16_and_what_the_layer_takes(self) -> None:
        assert blocked.kernels_suit(self.X, self.change())
        assert not blocked.kernels_suit(self.X.float(), self.change())
        assert not blocked.kernels_suit(self.X, self.change(a=torch.zeros(4, 3, 64)))

    def test_not_more_ranks_than_a_block_has_columns(self) -> None:
        assert blocked.kernels_suit(self.X, self.change(rank=64))
        assert not blocked.kernels_suit(self.X, self.change(rank=65))

    @pytest.mark.parametrize(
        ("hidden", "heads", "inner", "expected"),
        [
            (384, 12, 1536, True),
            (768, 12, 3072, True),
            (32, 4, 64, False),
            (48, 3, 64, False),
            (96, 1, 96, False),
            (64, 2, 80, False),
        ],
    )
    def test_widths(self, hidden: int, heads: int, inner: int, expected: bool) -> None:
        shape = BackboneShape(hidden=hidden, layers=1, heads=heads, intermediate=inner, vocabulary=9, positions=9)
        assert native.serves(shape) == expected


class TestTheStartUpCheck:
    """It must see a kernel that computes something else."""

    def check(self) -> None:
        torch.manual_seed(0)
        case = Case(64, 2, 96, n=4, t=12, targets=[0, 2], rank=4, below=False)
        frozen, _, _ = _parts(case)
        names = [f"{kind}{target}" for target in case.targets for kind in "ab"]

        def of(rows: slice) -> Losses:
            def losses(copies: dict[str, Tensor]) -> Tensor:
                changes: list[list[Change]] = [[], [], [], []]
                for target in case.targets:
                    _, start, stop = case.places[target]
                    changes[0].append(Change(a=copies[f"a{target}"], b=copies[f"b{target}"], scale=2.0, start=start, stop=stop))
                x = case.x[rows].to(HALF)
                # Alone, the check asks for plain autograd: float32 here, which shares nothing with the kernels.
                if blocked.kernels_suit(x, changes):
                    out = blocked.native_layer(x, case.mask[rows], frozen, changes)
                else:
                    changes = [[Change(**{**vars(c), "a": c.a[0], "b": c.b[0]}) for c in each] for each in changes]
                    out = _plain(case, rows, changes)
                return (out.float() * case.direction[rows]).sum((1, 2))

            return losses  # type: ignore[return-value]

        parameters = dict(zip(names, case.factors, strict=True))
        check_gradients(of(slice(None)), lambda i: of(slice(i, i + 1)), parameters, names, users=4, tolerance=0.05)

    def test_passes(self) -> None:
        self.check()

    @pytest.mark.parametrize("kernel", ["attention_back", "inner_back", "factors"])
    def test_sees_a_broken_kernel(self, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
        whole = getattr(torch.ops.fedfuse, kernel)

        def broken(*args: object) -> object:
            found = whole(*args)
            # One token's share of each example is forgotten.
            for one in found:
                if one.numel():
                    one[..., : one.shape[-1] // 2] = 0
            return found

        monkeypatch.setattr(torch.ops.fedfuse, kernel, broken)
        with pytest.raises(PrivacyError, match="differs by"):
            self.check()


def _parts(case: Case, dtype: torch.dtype = HALF) -> tuple[FrozenLayer, list[list[Change]], list[Tensor]]:
    def rounded(value: Tensor) -> Tensor:
        return value.to(HALF).to(dtype)

    maps = [
        FrozenMap(weight=rounded(weight), bias=rounded(bias), parts=("one",) * (3 if place == 0 else 1))
        for place, (weight, bias) in enumerate(case.maps)
    ]
    norms = [FrozenNorm(weight=rounded(weight), bias=rounded(bias), eps=1e-12) for weight, bias in case.norms]
    frozen = FrozenLayer(
        stacked=maps[0], mixing=maps[1], up=maps[2], down=maps[3], attention_norm=norms[0], output_norm=norms[1], heads=case.heads
    )
    single = torch.float32 if dtype == HALF else dtype
    copies = [
        factor.to(single).expand(case.n, *factor.shape).requires_grad_(case.frozen != "ab"[place % 2])
        for place, factor in enumerate(case.factors)
    ]
    changes: list[list[Change]] = [[], [], [], []]
    for place, target in enumerate(case.targets):
        of, start, stop = case.places[target]
        changes[of].append(Change(a=copies[2 * place], b=copies[2 * place + 1], scale=2.0, start=start, stop=stop))
    return frozen, changes, copies


def _plain(case: Case, rows: slice, changes: list[list[Change]]) -> Tensor:
    """The layer in torch's own words, in float32."""
    frozen, _, _ = _parts(case, torch.float32)
    x = case.x[rows].to(HALF).float()
    stacked = torch.nn.functional.linear(x, frozen.stacked.weight, frozen.stacked.bias)
    for change in changes[0]:
        added = change.scale * (x @ change.a.T) @ change.b.T
        stacked = stacked + torch.nn.functional.pad(added, (change.start, stacked.shape[-1] - change.stop))
    n, t, h = x.shape
    q, k, v = stacked.view(n, t, 3, case.heads, -1).permute(2, 0, 3, 1, 4)
    allowed = case.mask[rows][:, None, None, :]
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).reshape(n, t, h)
    y = frozen.attention_norm(x + torch.nn.functional.linear(mixed, frozen.mixing.weight, frozen.mixing.bias))
    inner = torch.nn.functional.gelu(torch.nn.functional.linear(y, frozen.up.weight, frozen.up.bias))
    return frozen.output_norm(y + torch.nn.functional.linear(inner, frozen.down.weight, frozen.down.bias))
