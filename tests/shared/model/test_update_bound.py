"""Adam's steps stay below the bound for gradients that try to break it, and nearly reach it for those that do their worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.training.adam import Adam
from shared.base.settings import Settings, TrainingSettings
from shared.model.update_bound import ADAM, largest_change


def moved(gradients: list[float], rate: float = 1.0) -> list[float]:
    """How far each step moves one parameter."""
    adam, value, steps = Adam(learning_rate=rate), {"x": torch.zeros(1)}, []
    for gradient in gradients:
        before = value["x"].item()
        adam.step(value, {"x": torch.tensor([gradient])})
        steps.append(abs(value["x"].item() - before))
        value["x"] = torch.zeros(1)  # so that no sum is rounded
    return steps


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.integers(0, 400))
def test_no_gradients_move_further(gradients: list[float], quiet: int) -> None:
    assert max(moved([0.0] * quiet + gradients)) <= ADAM * 1.001


def test_the_worst_come_close() -> None:
    """Gradients that grow like (b1 / b2)^-j after a long silence: Cauchy and Schwarz with equality. The bound is no idle one."""
    worst = [0.0] * 4000 + [(0.999 / 0.9) ** j * 1e-3 for j in range(60)]
    assert 0.97 * ADAM < max(moved(worst)) <= ADAM


@pytest.mark.parametrize("clip", [0.1, 10.0])
def test_noise_moves_no_further(clip: float) -> None:
    random = np.random.default_rng(0)
    assert max(moved(list(random.normal(0, clip, 300)))) < 3.2  # and ordinary noise much less: one rate or so


def test_a_round_is_so_many_steps() -> None:
    training = TrainingSettings(local_steps=4, learning_rate=0.01)
    assert largest_change(Settings(training=training)) == pytest.approx(4 * 0.01 * ADAM, rel=2e-3)
