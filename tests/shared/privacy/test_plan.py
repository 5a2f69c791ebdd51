"""Calibration and plans: enough noise, hardly more, and refusals with figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from shared.base.errors import InputError, NoisyPlan, PrivacyError
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, Accountant
from shared.privacy.calibration import TOLERANCE, noise_multiplier
from shared.privacy.plan import Plan, make_plan, signal_to_noise
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Spent

PRIOR = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=30.0)
TRAIN = Release(kind=ReleaseKind.TRAIN, noise_multiplier=1.0, sample_rate=0.15, steps=200)


class Counting:
    """An accountant that counts how often it is asked."""

    name = "counting"

    def __init__(self, inner: Accountant) -> None:
        self.inner, self.calls = inner, 0

    def epsilon(self, releases: Sequence[Release], delta: float) -> Spent:
        self.calls += 1
        return self.inner.epsilon(releases, delta)


@pytest.mark.parametrize(
    ("accountant", "budget"),
    [(OPACUS, 8.0), (OPACUS, 10.3), (OPACUS, 100.0), *((DP_ACCOUNTING, budget) for budget in (0.5, 1.0, 8.0, 100.0))],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_noise_is_enough_and_hardly_more(accountant: Accountant, budget: float) -> None:
    counting = Counting(accountant)
    noise = noise_multiplier(budget=budget, delta=1e-5, planned=TRAIN, fixed=[PRIOR], accountant=counting)
    assert counting.calls <= 16
    assert accountant.epsilon([PRIOR, replace(TRAIN, noise_multiplier=noise)], 1e-5).epsilon <= budget
    less = replace(TRAIN, noise_multiplier=noise * (1 - 1.01 * TOLERANCE))
    assert accountant.epsilon([PRIOR, less], 1e-5).epsilon > budget


def test_small_budgets_and_groups() -> None:
    tiny = noise_multiplier(budget=0.1, delta=1e-5, planned=TRAIN, accountant=DP_ACCOUNTING)
    assert tiny == pytest.approx(65.4, rel=0.01)
    group = noise_multiplier(budget=8.0, delta=1e-5, planned=replace(TRAIN, group_size=4))
    spent = DP_ACCOUNTING.epsilon([replace(TRAIN, group_size=4, noise_multiplier=group)], 1e-5)
    assert 7.9 < spent.epsilon <= 8.0
    assert group > 4 * noise_multiplier(budget=8.0, delta=1e-5, planned=TRAIN, accountant=DP_ACCOUNTING)


def test_what_is_fixed_may_already_be_too_much() -> None:
    with pytest.raises(PrivacyError, match=r"alone spend epsilon 4\.3.* of a budget of 1"):
        noise_multiplier(budget=1.0, delta=1e-5, planned=TRAIN, fixed=[replace(PRIOR, noise_multiplier=1.0)])


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(InputError, match="budget"):
        noise_multiplier(budget=budget, delta=1e-5, planned=TRAIN)


def test_signal_to_noise_is_the_ratio_of_norms() -> None:
    ratio = signal_to_noise(batch=100.0, steps=25, noise_multiplier=2.0, parameters=400)
    assert ratio == pytest.approx((0.1 * 1000 * 25) / (2.0 * math.sqrt(25 * 400)))
    assert signal_to_noise(batch=0.1, steps=1, noise_multiplier=0.0, parameters=1) == math.inf


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "budget": 8.0,
        "delta": 1e-4,
        "users": 943,
        "sample_rate": 0.15,
        "steps": 200,
        "prior_noise_multiplier": 3.0,
        "group_size": 1,
        "parameters": 36_864,
    }
    return make_plan(**{**values, "accountant": DP_ACCOUNTING, **changes})


def test_a_plan_says_what_it_will_release_and_keeps_its_budget() -> None:
    evaluation = Release(kind=ReleaseKind.EVALUATE, noise_multiplier=20.0)
    made = plan(evaluations=[evaluation, evaluation])
    assert [(r.kind, r.steps) for r in made.releases] == [("popularity", 1), ("train", 200), ("evaluate", 1), ("evaluate", 1)]
    assert made.releases[1].noise_multiplier == made.noise_multiplier
    assert 7.9 < made.epsilon <= 8.0
    assert OPACUS.epsilon(made.releases, 1e-4).epsilon == pytest.approx(made.epsilon, rel=0.01)
    assert made.private and made.signal_to_noise > 1
    assert "epsilon 7.9" in str(made)
    assert plan(evaluations=[replace(evaluation, noise_multiplier=2.0)]).noise_multiplier > made.noise_multiplier


def test_a_plan_charges_training_for_its_group() -> None:
    social = plan(group_size=3)
    assert [r.group_size for r in social.releases] == [1, 3]
    assert social.noise_multiplier > 2 * plan().noise_multiplier


def test_privacy_off_is_said_plainly() -> None:
    off = plan(budget=math.inf)
    assert (off.releases, off.noise_multiplier, off.epsilon, off.signal_to_noise) == ((), 0.0, math.inf, math.inf)
    assert not off.private and "OFF" in str(off)


def test_an_update_that_would_be_noise_is_refused_with_what_to_do() -> None:
    with pytest.raises(NoisyPlan, match="would be noise") as caught:
        plan(users=40, budget=2.0)
    assert "40 users" in caught.value.found and "more users" in caught.value.do and "model.rank" in caught.value.do


@pytest.mark.parametrize(
    "bad",
    [{"users": 0}, {"parameters": 0}, {"budget": 0}, {"delta": 0.0}, {"sample_rate": 0.0}, {"steps": 0}, {"group_size": 0}],
)
@pytest.mark.parametrize("budget", [8.0, math.inf])
def test_values_are_checked_even_without_privacy(bad: dict[str, Any], budget: float) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        plan(**{"budget": budget, **bad})


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "2"], ids=repr)
@pytest.mark.parametrize("name", ["users", "parameters"])
def test_a_number_of_users_or_parameters_is_a_whole_one(name: str, wrong: Any) -> None:
    with pytest.raises(InputError) as caught:
        plan(**{name: wrong})
    assert caught.value.found == f"{name} is {wrong!r}"
    assert plan(**{name: 1, "accept_noise": True}).private


@pytest.mark.parametrize("wrong", [0, 0.0, -1.0, math.nan, True, "8", None], ids=repr)
def test_a_budget_is_above_nothing(wrong: Any) -> None:
    with pytest.raises(InputError, match="budget is"):
        plan(budget=wrong)
    assert plan(budget=8).budget == 8.0


@pytest.mark.parametrize("wrong", [0, 1, 1.0, -0.1, math.nan], ids=repr)
def test_a_delta_is_between_0_and_1(wrong: float) -> None:
    with pytest.raises(InputError, match="delta is"):
        plan(delta=wrong)


def test_a_plan_in_words_names_every_noise_that_it_adds() -> None:
    noise = {"noise_multiplier": 1.23456, "preference_noise": 0.55551, "taste_noise": 2.5}
    made = replace(plan(), epsilon=7.98765, **noise, signal_to_noise=6.949)
    said = str(made)
    assert said.startswith(f"epsilon 7.988 of 8 at delta 0.0001 ({made.accountant}), ")
    assert said.endswith("noise multiplier 1.235, 0.556 of preferences, 2.500 of the taste map, signal to noise 6.9")


@pytest.mark.parametrize(
    ("parameters", "noise", "ratio"), [(0, 2.0, math.inf), (4, 0.0, math.inf), (4, 2.0, 10.0 * 3 / (2.0 * 2))]
)
def test_without_noise_or_parameters_the_ratio_is_infinite(parameters: int, noise: float, ratio: float) -> None:
    assert signal_to_noise(batch=10.0, steps=9, noise_multiplier=noise, parameters=parameters) == ratio
