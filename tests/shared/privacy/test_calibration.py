"""The search for the least noise: right to its tolerance for every curve, and in few calls, each of which is an accounting."""

from __future__ import annotations

import math
from itertools import product

import pytest

from shared.base.errors import PrivacyError
from shared.privacy.accountants import DP_ACCOUNTING
from shared.privacy.calibration import LARGEST, SMALLEST, TOLERANCE, _guess, _least, noise_multiplier
from shared.privacy.releases import Release, ReleaseKind


def searched(*, root: float, off: float, slope: float = 1.0, bend: float = 0.0) -> tuple[float, int]:
    """What is found, and in how many calls, where so much noise is the least and the guess is off by a factor."""
    calls = []

    def excess(noise: float) -> float:
        calls.append(noise)
        beyond = math.log(root / noise)
        return slope * beyond + bend * beyond * abs(beyond)

    return _least(excess, guess=root * off, budget=1.0), len(calls)


def test_it_is_enough_and_hardly_more_whatever_the_curve_and_the_guess() -> None:
    total = 0
    for slope, bend, root, off in product((0.6, 1.0, 2.2), (0.0, 0.15), (0.02, 0.31, 7.3, 3e5), (0.03, 0.9, 1.1, 40.0)):
        found, calls = searched(root=root, off=off, slope=slope, bend=bend)
        assert root <= found <= root * (1 + TOLERANCE), (slope, bend, root, off)
        assert calls <= 18, (slope, bend, root, off)
        total += calls
    assert total <= 9 * 96


def test_a_good_guess_of_a_straight_curve_takes_a_few_calls() -> None:
    assert max(searched(root=root, off=off)[1] for root in (0.5, 7.3, 900.0) for off in (0.8, 0.95, 1.0, 1.05, 1.2)) <= 6


def test_no_less_than_the_least_noise_and_no_more_than_the_most() -> None:
    for root in (1e-9, SMALLEST / 2, SMALLEST):
        assert searched(root=root, off=1.0)[0] == SMALLEST
    assert searched(root=LARGEST, off=0.01)[0] == LARGEST == searched(root=LARGEST, off=10.0)[0]
    with pytest.raises(PrivacyError, match="no amount of noise"):
        searched(root=LARGEST * 1.001, off=1.0)
    # A step, as of an accountant that is infinite below some noise.
    assert _least(lambda noise: math.inf if noise < 3 else -1e-9, guess=1.0, budget=1.0) == pytest.approx(3, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("budget", "release"),
    [(0.2, {}), (1.0, {}), (8.0, {}), (4.0, {"group_size": 3}), (4.0, {"steps": 100}), (2.0, {"steps": 400, "sample_rate": 0.1})],
)
def test_the_first_guess_is_near(budget: float, release: dict[str, float]) -> None:
    planned = Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.0, **release)  # type: ignore[arg-type]
    found = noise_multiplier(budget=budget, delta=1e-5, planned=planned, accountant=DP_ACCOUNTING)
    assert 1.1 < _guess(planned, budget, 1e-5) / found < 1.5
