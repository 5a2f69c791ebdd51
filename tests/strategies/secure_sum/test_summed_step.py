"""A run under distributed noise is begun only where its sums can be more than noise, over all platforms' users together."""

from __future__ import annotations

import math

import pytest

from shared.base.errors import NoisyPlan
from shared.base.settings import Settings, TrainingSettings
from shared.secagg.noise_agreement import Agreement
from strategies.secure_sum.summed_step import require_signal

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
