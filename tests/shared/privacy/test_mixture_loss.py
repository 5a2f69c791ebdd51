"""The mixture's loss, inverted at all points at once, against dp-accounting's own."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.privacy.groups import Removal
from shared.privacy.mixture_loss import _MixtureLoss, mixture_loss
from shared.privacy.pld import mixture


@settings(max_examples=3, deadline=None)
@given(noise=st.floats(2.0, 30.0), rate=st.floats(1e-4, 0.9), examples=st.integers(2, 5), delta=st.floats(1e-9, 1e-3))
def test_it_is_dp_accountings_own(noise: float, rate: float, examples: int, delta: float) -> None:
    parts = mixture(Removal(noise_multiplier=noise, sample_rate=rate, examples=examples, steps=1))
    found = mixture_loss(noise, *parts, width=4e-3).self_compose(20)
    expected = from_mixture_gaussian_mechanism(noise, *parts, value_discretization_interval=4e-3).self_compose(20)
    assert found.get_epsilon_for_delta(delta) == pytest.approx(expected.get_epsilon_for_delta(delta), rel=1e-6, abs=1e-6)
    for epsilon in (0.0, 0.3, 2.0):
        assert found.get_delta_for_epsilon(epsilon) == pytest.approx(expected.get_delta_for_epsilon(epsilon), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("direction", [AdjacencyType.ADD, AdjacencyType.REMOVE])
def test_the_inverse_is_the_smallest_multiple_that_is_enough(direction: AdjacencyType) -> None:
    loss = _MixtureLoss(2.0, [0, 1, 3], [0.7, 0.2, 0.1], adjacency_type=direction)
    wanted = np.linspace(-0.3, 0.3, 101)
    found = loss.inverse_privacy_losses(wanted, precision=1e-4)
    assert (loss.losses(found) <= wanted).all()
    assert (loss.losses(found - 1e-4) > wanted).all()
    one_by_one = np.asarray([loss.privacy_loss(float(x)) for x in found])
    np.testing.assert_allclose(loss.losses(found), one_by_one, rtol=1e-12, atol=1e-12)
