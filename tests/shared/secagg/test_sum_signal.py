"""A run begins only where its sums can be more than noise."""

from __future__ import annotations

import math

import pytest

from shared.base.errors import NoisyPlan
from shared.base.settings import PreferenceSettings, Settings, TrainingSettings
from shared.secagg.noise_agreement import Agreement
from shared.secagg.sum_signal import require_signal

SETTINGS = Settings(rounds=25, training=TrainingSettings(sample_rate=0.25))


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
