"""The axis of popularity: found from noised counts, taken off and put back, and no other's word for it."""

from __future__ import annotations

import numpy as np
import pytest

from shared.base.errors import ProtocolError
from shared.preferences.denoising import preference_factors
from shared.preferences.popularity_axis import PopularityAxis, declared_direction, parse_direction, popularity_axis


def test_taken_off_and_put_back_it_is_the_sum_of_users_who_are_alike() -> None:
    """Where all have as much along the axis, nothing is lost."""
    rows = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]) / np.sqrt(2)
    users = rows[np.arange(40) % 2]
    likes = users.sum(0)
    axis = popularity_axis(likes, noise=0.0, users=40)
    assert axis.share == pytest.approx(0.5)
    beside = users - np.outer(users @ axis.direction, axis.direction)
    beside /= np.linalg.norm(beside, axis=1, keepdims=True)
    factors, diagonal = axis.put_back(preference_factors(beside.T @ beside, noise=0.0), np.diag(beside.T @ beside), users=40)
    np.testing.assert_allclose(factors.T @ factors, users.T @ users, atol=1e-4)
    np.testing.assert_allclose(diagonal, np.diag(users.T @ users), atol=1e-4)


@pytest.mark.parametrize("noise", [3.0, 30.0, 300.0])
def test_noise_is_not_taken_for_popularity(noise: float) -> None:
    random = np.random.default_rng(0)
    likes = 200.0 / np.arange(1, 1001)
    users = 400
    true = popularity_axis(likes, noise=0.0, users=users)
    found = popularity_axis(likes + random.normal(size=1000) * noise, noise=noise, users=users)
    naive = popularity_axis(np.maximum(likes + random.normal(size=1000) * noise, 0.0), noise=0.0, users=users)
    assert found.direction @ true.direction > naive.direction @ true.direction
    assert abs(found.share - true.share) <= abs(naive.share - true.share)


@pytest.mark.parametrize("likes", [np.zeros(5), np.full(5, -1e9), np.full(5, 1e300), np.eye(5)[0]])
@pytest.mark.parametrize("noise", [0.0, 1.0, 1e6])
def test_whatever_came_it_is_a_direction(likes: np.ndarray, noise: float) -> None:
    axis = popularity_axis(likes, noise=noise, users=10)
    assert parse_direction(declared_direction(axis.direction), items=5).tolist() == axis.direction.tolist()
    assert 0 <= axis.share <= 0.9


@pytest.mark.parametrize("share", [-0.1, 0.95, float("nan")])
def test_no_other_share(share: float) -> None:
    with pytest.raises(ProtocolError):
        PopularityAxis(direction=np.eye(3, dtype=np.float32)[0], share=share)
