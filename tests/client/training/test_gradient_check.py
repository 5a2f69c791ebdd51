"""The start-up check passes on the real thing, and stops every way of being wrong that others shipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import client.training.gradient_check
from client.training.gradient_check import check_gradients, made_up_examples
from client.training.per_user_gradients import user_gradients
from shared.base.errors import PrivacyError
from shared.layers import manual_backward as layer
from shared.layers.attention import derivative
from shared.layers.merged_maps import Merged
from shared.model.adapter import TARGETS

Make = Callable[..., Any]


def run(toy: Any, names: list[str] | None = None, losses: Any = None, *, tolerance: float = 1e-3) -> None:
    names = list(toy.parameters) if names is None else names
    fixed = {name: value for name, value in toy.parameters.items() if name not in names}
    check_gradients(
        lambda copies: (losses or toy.losses())({**fixed, **copies}),
        lambda row: lambda copies: toy.losses(slice(row, row + 1))({**fixed, **copies}),
        toy.parameters,
        names,
        users=len(toy.hidden),
        tolerance=tolerance,
    )


@pytest.fixture
def toy(make_toy: Make) -> Any:
    return make_toy(rows=3, length=6)


@pytest.mark.parametrize("fusion", ["attention", "gated", "vote"])
@pytest.mark.parametrize("targets", ["query,value", ",".join(TARGETS)])
def test_passes_on_the_real_thing(make_toy: Make, fusion: str, targets: str) -> None:
    run(make_toy(rows=3, length=6, fusion=fusion, targets=targets))


def test_passes_at_the_start_where_b_is_zero(toy: Any) -> None:
    # B = 0 hides every gradient of A; the check must stir before it looks.
    for name in toy.parameters:
        if name.endswith("lora_B"):
            toy.parameters[name] = torch.zeros_like(toy.parameters[name])
    run(toy)


def test_passes_with_some_tensors_frozen(toy: Any) -> None:
    run(toy, [name for name in toy.parameters if name.endswith("lora_B")])


def test_leaves_the_parameters_alone(toy: Any) -> None:
    before = {name: value.clone() for name, value in toy.parameters.items()}
    run(toy)
    assert all(torch.equal(before[name], value) for name, value in toy.parameters.items())


def test_notices_a_derivative_of_ours_that_is_wrong(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # One user at a time is computed by plain autograd: else both sides would be wrong alike.
    right = Merged.gradients

    def wrong(self: Merged, *given: Any) -> list[Tensor | None]:
        return [None if found is None else 1.5 * found for found in right(self, *given)]

    monkeypatch.setattr(Merged, "gradients", wrong)
    with pytest.raises(PrivacyError, match="differs"):
        run(toy)


def test_notices_a_derivative_of_attention_that_is_wrong(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "derivative", lambda do, parts, shares, wanted: 1.5 * derivative(do, parts, shares, wanted))
    with pytest.raises(PrivacyError, match="differs"):
        run(toy)


Broken = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _everybody_gets_the_first(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1].expand_as(value) for name, value in gradients.items()}


def _users_turned(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.roll(1, 0) for name, value in gradients.items()}


def _mean_of_the_batch(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value / len(value) for name, value in gradients.items()}


def _one_tensor_missing(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    first = next(iter(gradients))
    return {name: torch.zeros_like(value) if name == first else value for name, value in gradients.items()}


def _last_user_forgotten(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([value[:-1], torch.zeros_like(value[-1:])]) for name, value in gradients.items()}


def _not_a_number(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(value, torch.nan) for name, value in gradients.items()}


def _head_transposed(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "encoder.layer.2.attention.self.query.lora_B"
    value = gradients[name]
    return gradients | {name: value.transpose(1, 2).reshape(value.shape)}


BROKEN = [
    _everybody_gets_the_first,
    _users_turned,
    _mean_of_the_batch,
    _one_tensor_missing,
    _last_user_forgotten,
    _not_a_number,
    _head_transposed,
]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("tolerance", [1e-3, 0.1], ids=["float32", "bfloat16"])
def test_wrong_gradients_stop_everything(toy: Any, monkeypatch: pytest.MonkeyPatch, broken: Broken, tolerance: float) -> None:
    monkeypatch.setattr(client.training.gradient_check, "user_gradients", lambda *arguments: broken(user_gradients(*arguments)))
    with pytest.raises(PrivacyError) as caught:
        run(toy, tolerance=tolerance)
    assert caught.value.do


def test_a_layer_that_mixes_users_is_noticed(toy: Any) -> None:
    def mixed(copies: Mapping[str, Tensor]) -> Tensor:
        # What a layer that normalises over the batch would do.
        return toy.losses()({name: value.mean(0, keepdim=True).expand_as(value) for name, value in copies.items()})

    with pytest.raises(PrivacyError, match="differs"):
        run(toy, losses=mixed)


def test_a_tensor_that_is_not_used_is_noticed(toy: Any) -> None:
    toy.parameters["encoder.layer.9.unused"] = torch.ones(2, 2)
    with pytest.raises(PrivacyError, match="no gradient") as caught:
        run(toy)
    assert "encoder.layer.9.unused" in caught.value.found


def test_a_tensor_whose_gradient_is_cut_off_is_noticed(toy: Any) -> None:
    name = "encoder.layer.1.attention.self.value.lora_A"

    def cut(rows: slice) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda copies: toy.losses(rows)({**copies, name: copies[name].detach()})

    with pytest.raises(PrivacyError, match="no gradient") as caught:
        check_gradients(
            cut(slice(None)),
            lambda row: cut(slice(row, row + 1)),
            toy.parameters,
            list(toy.parameters),
            users=len(toy.hidden),
            tolerance=1e-3,
        )
    assert name in caught.value.found


def test_gradients_where_there_are_none_are_said(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing to compare with is no division by zero.
    monkeypatch.setattr(
        "client.training.gradient_check._plain",
        lambda losses, parameters: {n: torch.zeros_like(v) for n, v in parameters.items()},
    )
    with pytest.raises(PrivacyError, match="differs by inf%"):
        run(toy)


def test_nobody_to_check_is_said(make_toy: Make) -> None:
    toy = make_toy(rows=1, length=6)
    toy.hidden = toy.hidden[:0]
    with pytest.raises(PrivacyError, match="no gradient"):
        check_gradients(
            lambda copies: toy.losses(slice(0, 0))({**toy.parameters, **copies}),
            lambda row: toy.losses(),
            toy.parameters,
            list(toy.parameters),
            users=0,
            tolerance=0.1,
        )


def test_passes_for_one_user_alone_and_notices_a_wrong_gradient_of_it(make_toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of one made-up user: there is nobody beside it whose gradient could be the greatest."""
    alone = make_toy(rows=1, length=6)
    run(alone)
    monkeypatch.setattr(client.training.gradient_check, "user_gradients", lambda *given: _a_little_less(user_gradients(*given)))
    run(alone, tolerance=0.02)
    with pytest.raises(PrivacyError, match=r"differs by 1\.00%"):
        run(alone, tolerance=0.005)


def _a_little_less(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 0.99 * value for name, value in gradients.items()}


@pytest.mark.parametrize("user", range(3))
def test_one_user_among_several_is_enough_to_stop_everything(toy: Any, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    def wrong(*given: Any) -> dict[str, Tensor]:
        return {name: torch.cat([v[:user], 2 * v[user : user + 1], v[user + 1 :]]) for name, v in user_gradients(*given).items()}

    monkeypatch.setattr(client.training.gradient_check, "user_gradients", wrong)
    with pytest.raises(PrivacyError, match="differs"):
        run(toy)


def scaled(scales: list[float], *, wrong: float = 1.0) -> None:
    """The check of users whose gradients are so large, the first one's in the batch wrong by a factor."""
    together = torch.tensor([scales[0] * wrong, *scales[1:]])
    check_gradients(
        lambda copies: together * copies["w"].sum(1),
        lambda user: lambda copies: scales[user] * copies["w"].sum(1),
        {"w": torch.ones(4)},
        ["w"],
        users=len(scales),
        tolerance=1e-3,
    )


def test_what_is_next_to_nothing_beside_others_may_be_rounding() -> None:
    """A user whose gradient all but vanishes has no digits to compare; a user like all others has."""
    scaled([1e-5, 0.05, 0.02], wrong=2.0)
    with pytest.raises(PrivacyError, match="differs"):
        scaled([0.01, 0.05, 0.02], wrong=2.0)
    with pytest.raises(PrivacyError, match="differs by 100"):
        scaled([1e-5], wrong=2.0)


def test_no_gradient_at_all_is_not_said_to_differ() -> None:
    with pytest.raises(PrivacyError, match="1 trainable tensors get no gradient, first w"):
        scaled([0.0, 0.0])


@pytest.mark.parametrize(("items", "targets", "wanted"), [
    (2, 5, [[1], [0]]),
    (3, 2, [[1, 2], [2, 0], [0, 1]]),
    (4, 2, [[1, 2], [2, 3], [3, 0]]),
    (9, 9, [[1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8, 0], [3, 4, 5, 6, 7, 8, 0, 1]]),
])  # fmt: skip
def test_made_up_users_want_other_items_than_the_one_that_they_are(items: int, targets: int, wanted: list[list[int]]) -> None:
    made = made_up_examples(items, targets=targets)
    assert [made.targets[row].tolist() for row in range(len(made))] == wanted
    assert made.user.tolist() == list(range(len(wanted)))
    assert made.context.lengths().tolist() == made.excluded.lengths().tolist() == [0] * len(wanted)
