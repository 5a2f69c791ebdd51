"""The step on a masked sum is Adam's, also after a break; and a run begins only where its sums can be more than noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from shared.base.errors import InputError, NoisyPlan
from shared.base.settings import PreferenceSettings, ServerSettings, Settings, TrainingSettings
from shared.secagg.noise_agreement import Agreement
from strategies.secure_sum.summed_step import StepOnSums, require_signal

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


def noise(multiplier: float) -> Agreement:
    return Agreement(noise_multiplier=multiplier, batch=10.0)


def test_the_signal_is_the_most_that_all_users_can_say_over_the_noise() -> None:
    """q n T of gradients that all agree, against z sqrt(T d) of noise."""
    ratio = require_signal(SETTINGS, noise(3.0), users=[400, 800], parameters=400)
    assert ratio == pytest.approx(0.25 * 1200 * 25 / (3.0 * math.sqrt(25 * 400)))
    assert require_signal(SETTINGS, noise(0.0), users=[1], parameters=400) == math.inf


def test_a_signal_as_large_as_the_noise_is_the_least() -> None:
    # 0.25 * 64 * 5 / (2 * sqrt(1600)) = 1, exactly.
    assert require_signal(SETTINGS, noise(2.0), users=[64], parameters=1600) == 1.0
    for users, parameters in ((63, 1600), (64, 1601)):
        with pytest.raises(NoisyPlan, match=rf"{users} users on all platforms, 25 rounds, {parameters} parameters") as caught:
            require_signal(SETTINGS, noise(2.0), users=[users], parameters=parameters)
        assert "multiplier 2" in caught.value.where and caught.value.do


def test_preferences_alone_are_held_against_the_noise_of_their_own_sum() -> None:
    """All users liking the same, over the largest eigenvalue of noise of so many items, or directions, as are summed."""
    agreed = Agreement(noise_multiplier=0.0, preference_noise=2.0, taste_noise=3.0, batch=1.0)

    def ratio(*, users: int, shared: int, items: int = 0, directions: int = 0) -> float:
        settings = Settings(strategy="preferences", preferences=PreferenceSettings(items=items, map=directions))
        return require_signal(settings, agreed, users=[users - 1, 1], parameters=0, shared=shared)

    assert ratio(users=80, shared=500, items=200) == 80 / (2 * math.sqrt(400))  # no more are summed
    assert ratio(users=80, shared=50, items=200) == 80 / (2 * math.sqrt(100))  # no more are shared
    assert ratio(users=80, shared=0, items=200) == 80 / (2 * math.sqrt(2))  # such a run ends by saying so
    assert ratio(users=80, shared=0, directions=32) == 80 / (3 * math.sqrt(64))
    assert ratio(users=40, shared=200, items=200) == 1.0 and ratio(users=24, shared=0, directions=32) == 1.0
    for few in ({"users": 39, "shared": 200, "items": 200}, {"users": 23, "shared": 0, "directions": 32}):
        with pytest.raises(NoisyPlan, match=f"{few['users']} users on all platforms, {few.get('items', few.get('directions'))}"):
            ratio(**few)
