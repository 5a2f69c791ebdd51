"""The step on a masked sum is Adam's, also after a break; and the noise of a sum suffices for every platform in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.base.errors import InputError
from shared.base.settings import ServerSettings, Settings, TrainingSettings
from shared.protocol.messages import Quoted
from strategies.secure_sum.summed_step import StepOnSums, sufficient_noise

SETTINGS = Settings(rounds=25, training=TrainingSettings(sample_rate=0.25))
RATES = {"server's": Settings(server=ServerSettings(learning_rate=0.03)), "training's": Settings()}


@pytest.mark.parametrize("whose", RATES)
@pytest.mark.parametrize("broken", [False, True], ids=["in one go", "taken up again after each round"])
def test_it_is_adam_on_each_tensor_that_a_round_trains(whose: str, broken: bool) -> None:
    """Against torch's own, which counts a parameter's steps where it has a gradient; a sum points downhill."""
    random = np.random.default_rng(0)
    at = {name: random.normal(size=shape).astype(np.float32) for name, shape in {"a": (2, 3), "b": (3, 1), "c": (1, 1)}.items()}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.astype(np.float64))) for name, value in at.items()}
    rate = 0.03 if whose == "server's" else RATES[whose].training.learning_rate
    adam = torch.optim.Adam(theirs.values(), lr=rate)
    ours = StepOnSums(RATES[whose])
    for number in range(6):
        # Not every round trains all; one tensor is first trained in the last.
        change = {name: random.normal(size=at[name].shape) for name in ("ab", "a", "ab", "b", "ab", "abc")[number]}
        for name, parameter in theirs.items():
            parameter.grad = -torch.from_numpy(change[name]) if name in change else None
        adam.step()
        at = ours.step(at, change)
        for name, parameter in theirs.items():
            np.testing.assert_allclose(at[name], parameter.detach().numpy(), atol=1e-5)
        if broken:
            again = StepOnSums(RATES[whose])
            again.restore({key: value.copy() for key, value in ours.state().items()}, at)
            ours = again
    assert sorted(ours.state()) == [f"{kind}:{name}" for kind in ("count", "first", "second") for name in "abc"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"count:y": np.array([1.0])},
        {"count:x": np.array([1.0, 1.0])},
        {"count:x": np.array(1.0)},
        {"count:x": np.array([0.0])},
        {"count:x": np.array([-1.0])},
        {"count:x": np.array([1.5])},
        {"count:x": np.array([np.nan])},
        {"count:x": np.array([np.inf])},
        {"first:y": np.ones((2, 3))},
        {"first:x": np.ones((3, 2))},
        {"second:x": np.full((2, 3), np.nan)},
        {"third:x": np.ones((2, 3))},
    ],
    ids=lambda wrong: " ".join(f"{key}={value.tolist()}" for key, value in wrong.items()),
)
def test_a_state_of_something_else_is_refused_and_nothing_of_it_taken(wrong: dict[str, Any]) -> None:
    at = {"x": np.zeros((2, 3), np.float32)}
    optimizer = StepOnSums(SETTINGS)
    optimizer.step(at, {"x": np.ones((2, 3))})
    state = {key: value.copy() for key, value in optimizer.state().items()}
    StepOnSums(SETTINGS).restore(state, at)
    new = StepOnSums(SETTINGS)
    with pytest.raises(InputError, match=r"not fit this run|do not fit this run"):
        new.restore({**state, **wrong}, at)
    assert new.state() == {}


NOISES = ("noise_multiplier", "preference_noise", "taste_noise")


@given(st.lists(st.tuples(*[st.floats(0, 100)] * len(NOISES)), max_size=5))
def test_the_noise_that_is_agreed_on_suffices_for_everybody_and_is_no_more(said: list[tuple[float, ...]]) -> None:
    """Of each sum by itself: who needs most for one of them may need least for another."""
    rest = {
        "run": "dry",
        "platform": "shop",
        "users": 9,
        "epsilon": 2.0,
        "delta": 1e-5,
        "shown": True,
        "left": 8.0,
        "left_after": 6.0,
    }
    quotes = [Quoted(**{**rest, **dict(zip(NOISES, one, strict=True))}) for one in said]  # type: ignore[arg-type]
    agreed = sufficient_noise(quotes, batch=9.0)
    for place, name in enumerate(NOISES):
        assert getattr(agreed, name) == max((one[place] for one in said), default=0.0)
