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


def test_of_a_count_as_much_is_taken_as_stands_out_of_its_noise() -> None:
    """What does not is a tenth of the noise, so that every item is somewhere along the axis; more users there are not."""
    likes = np.array([105.0, 30.0, 5.0, -80.0, 1e6])
    above = np.array([100.0, 25.0, 0.5, 0.5, 205.0])
    axis = popularity_axis(likes, noise=5.0, users=200)
    np.testing.assert_allclose(axis.direction, np.sqrt(above / above.sum()), rtol=1e-6)
    mean = above @ np.sqrt(above / above.sum()) / 200
    assert mean**2 > 0.9 == axis.share
    calm = popularity_axis(likes[:4], noise=5.0, users=200)
    assert calm.share == pytest.approx((above[:4] @ np.sqrt(above[:4] / above[:4].sum()) / 200) ** 2) and calm.share < 0.9
    exact = popularity_axis(np.array([1.0, 0.0]), noise=0.0, users=4)
    assert exact.direction[1] == pytest.approx(np.sqrt(1e-7)) and exact.share == pytest.approx(1 / 16, rel=1e-5)


@pytest.mark.parametrize(
    ("direction", "fits"),
    [([0.6, 0.8], True), ([1.0, 0.0009], True), ([1.0009, 0.0], True), ([1.002, 0.0], False), ([0.998, 0.0], False),
     ([-0.6, 0.8], False), ([np.nan, 1.0], False), ([np.inf, 0.0], False), ([0.0, 0.0], False)],
)  # fmt: skip
def test_an_axis_is_of_length_one_and_not_negative(direction: list[float], fits: bool) -> None:
    given = np.asarray(direction, np.float32)
    if fits:
        assert parse_direction(declared_direction(given), items=2).tolist() == given.tolist()
    for items in (2,) if not fits else (1, 3):
        with pytest.raises(ProtocolError, match="axis"):
            parse_direction(declared_direction(given), items=items)
