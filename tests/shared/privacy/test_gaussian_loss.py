"""The sampled Gaussian's loss, inverted at all points at once, against dp-accounting's own."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.privacy.gaussian_loss import _GaussianLoss, gaussian_loss


@settings(max_examples=10, deadline=None)
@example(noise=1.0, rate=1.0, delta=1e-6)
@given(noise=st.floats(0.5, 30.0), rate=st.floats(1e-4, 1.0), delta=st.floats(1e-9, 1e-3))
def test_it_is_dp_accountings_own(noise: float, rate: float, delta: float) -> None:
    found = gaussian_loss(noise, rate, width=4e-3).self_compose(20)
    expected = from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=4e-3).self_compose(20)
    assert found.get_epsilon_for_delta(delta) == pytest.approx(expected.get_epsilon_for_delta(delta), rel=1e-6, abs=1e-6)
    for epsilon in (0.0, 0.3, 2.0):
        assert found.get_delta_for_epsilon(epsilon) == pytest.approx(expected.get_delta_for_epsilon(epsilon), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("direction", [AdjacencyType.ADD, AdjacencyType.REMOVE])
@pytest.mark.parametrize("rate", [1e-3, 0.3, 1.0])
def test_every_point_is_the_one_that_dp_accounting_finds(direction: AdjacencyType, rate: float) -> None:
    ours = _GaussianLoss(0.7, sampling_prob=rate, adjacency_type=direction)
    theirs = GaussianPrivacyLoss(0.7, sampling_prob=rate, adjacency_type=direction)
    losses = np.concatenate([np.linspace(-3, 3, 61), [-800.0, -40.0, 40.0, 800.0]])  # far beyond what exp can hold, too
    np.testing.assert_allclose(ours.get_delta_for_epsilon(losses), theirs.get_delta_for_epsilon(losses), rtol=1e-9, atol=1e-13)
    assert ours.get_delta_for_epsilon(0.25) == pytest.approx(theirs.get_delta_for_epsilon(0.25), rel=1e-9)
    if rate < 1:
        end = np.log1p(-rate)
        losses = losses[losses > end] if direction == AdjacencyType.REMOVE else losses[losses < -end]
    one_by_one = [theirs.inverse_privacy_loss(float(loss)) for loss in losses]
    np.testing.assert_allclose(ours.inverse_privacy_losses(losses), one_by_one, rtol=1e-9, atol=1e-9)
