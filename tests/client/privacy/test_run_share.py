"""What one run may spend: what it asks for, as far as the ledger and the platform's file go; and that its plan keeps to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.config.platform_file import PlatformFile, load
from client.privacy import release_plan
from client.privacy.limited_plan import mechanism_of, plan_within
from client.privacy.run_share import RunShare, share_of
from shared.base.errors import BudgetExceeded, PrivacyError
from shared.base.settings import CLIPS, Settings, TrainingSettings, build
from shared.privacy.accountants import PREFERRED
from shared.privacy.plan import Plan
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method
from shared.secagg.fixed_point import FixedPoint, planning

BUDGET = 8.0
BEFORE = (Release(kind=ReleaseKind.PREFERENCES, noise_multiplier=2.0),)


@pytest.fixture
def file(write_platform: Callable[..., Path]) -> Callable[..., PlatformFile]:
    def made(cap: float | None = None) -> PlatformFile:
        found = load(write_platform(privacy=f"epsilon = {BUDGET}\ndelta = 1e-5", declared=4000))
        terms = found.federation.model_copy(update={"maximum_epsilon_per_run": cap})
        return found.model_copy(update={"federation": terms})

    return made


def settings(**privacy: Any) -> Settings:
    return build({"strategy": "preferences", "privacy": privacy}, where="test")


def share(file: PlatformFile, *, spent: tuple[Release, ...] = (), simulation: bool = False, **privacy: Any) -> RunShare:
    return share_of(file, settings(**privacy), budget=BUDGET, spent=spent, simulation=simulation)


def total(releases: tuple[Release, ...]) -> float:
    return PREFERRED.epsilon(releases, 1e-5).epsilon


def test_a_run_that_names_nothing_asks_for_a_quarter_of_what_is_left(file: Callable[..., PlatformFile]) -> None:
    assert share(file()).epsilon == BUDGET / 4
    found = share(file(), spent=BEFORE)
    assert found.spent == total(BEFORE) and found.left == BUDGET - found.spent
    assert found.epsilon == pytest.approx(found.left / 4) and found.total == pytest.approx(found.spent + found.left / 4)


@pytest.mark.parametrize(
    ("cap", "asked", "gets"), [(None, 3.0, 3.0), (2.0, 3.0, 2.0), (5.0, 3.0, 3.0), (1.0, None, 1.0), (None, 99.0, BUDGET)]
)
def test_the_platforms_file_caps_what_is_asked_for(
    file: Callable[..., PlatformFile], cap: float | None, asked: float | None, gets: float
) -> None:
    found = share(file(cap), epsilon=asked)
    assert found.epsilon == gets and found.alone == (math.inf if cap is None else cap)


def test_a_simulation_has_the_whole_budget(file: Callable[..., PlatformFile]) -> None:
    assert share(file(), simulation=True).total == BUDGET
    assert share(file(3.0), simulation=True).epsilon == 3.0


def test_what_is_spent_is_spent(file: Callable[..., PlatformFile]) -> None:
    with pytest.raises(BudgetExceeded, match="nothing is left"):
        share(file(), spent=BEFORE * 100)


def test_without_privacy_nothing_is_counted(file: Callable[..., PlatformFile]) -> None:
    found = share_of(file(), settings(), budget=math.inf, spent=(), simulation=True)
    assert found.total == math.inf == found.epsilon


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("spent", [(), BEFORE], ids=["first", "second"])
def test_the_plan_keeps_to_the_share_and_uses_it(
    file: Callable[..., PlatformFile], spent: tuple[Release, ...], cap: float | None
) -> None:
    made, asked = file(cap), settings()
    found = share(made, spent=spent)
    plan = plan_within(made, asked, share=found, simulation=False, spent=spent, group_size=1, parameters=1, items=50)
    own = plan.releases[: len(plan.releases) - len(spent)]
    assert plan.epsilon == pytest.approx(total((*own, *spent)))
    assert total((*own, *spent)) <= found.total and total(own) <= found.alone
    # One of the two limits is the reason for the noise.
    assert total((*own, *spent)) > 0.98 * found.total or total(own) > 0.98 * found.alone
    assert plan.budget == BUDGET


def test_a_share_that_carries_nothing_is_said_to_be_the_budgets(file: Callable[..., PlatformFile], tiny_settings: Any) -> None:
    asked = tiny_settings(simulation=False, privacy={"generator": "secure", "epsilon": 0.01, "prior_noise_multiplier": 3.0})
    made = file()
    found = share_of(made, asked, budget=BUDGET, spent=(), simulation=False)
    with pytest.raises(BudgetExceeded, match=r"may spend epsilon 0.01 of the 8 that this platform has left"):
        plan_within(made, asked, share=found, simulation=False, group_size=1, parameters=100, items=50)


@pytest.mark.parametrize("simulation", [False, True])
@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("budget", [BUDGET, math.inf])
def test_every_evaluation_that_leaves_is_planned_for_and_no_other(
    file: Callable[..., PlatformFile],
    tiny_settings: Any,
    simulation: bool,
    metrics: bool,
    budget: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: Settings = tiny_settings(simulation=simulation, privacy={"generator": "secure"}, rounds=3)
    made = file()
    made = made.model_copy(update={"federation": made.federation.model_copy(update={"metrics": metrics})})
    monkeypatch.setattr(release_plan, "make_plan", lambda **facts: facts)
    facts: Any = release_plan.plan_of(
        made, asked, budget=budget, group_size=3, parameters=1, exact_metrics=asked.exact_metrics, spent=BEFORE
    )
    released = not simulation and metrics and math.isfinite(budget)
    one = Release(
        kind=ReleaseKind.EVALUATE,
        noise_multiplier=asked.privacy.metrics_noise_multiplier,
        group_size=3,
        integers=planning(),
    )
    assert asked.evaluations > 1
    assert facts["evaluations"] == [*[one] * (asked.evaluations * released), *BEFORE]
    assert (facts["steps"], facts["sample_rate"]) == (asked.steps, asked.training.rate(made.users))


CLIP = 0.25
PLAN = Plan(
    releases=(),
    budget=BUDGET,
    delta=1e-5,
    noise_multiplier=2.0,
    epsilon=BUDGET,
    accountant=Method.PRV,
    signal_to_noise=9.0,
)


def step(plan: Plan, *, noise: float, clip: float = CLIP, local: int = 0, users: int = 4000) -> Release:
    point = FixedPoint(dimension=40, participants=3, honest=2, clip=clip, noise_multiplier=noise)
    asked = build({"strategy": "preferences", "training": {"clip": CLIP, "sample_rate": 0.125}}, where="test")
    made = release_plan.round_release(plan, point, settings=asked, users=users, group_size=3, local=local)
    assert made.noise_multiplier == point.multiplier_with(local) and made.integers == point.integers_with(local)
    return made


def test_a_round_of_the_secure_sum_has_at_least_the_planned_noise() -> None:
    made = step(PLAN, noise=2.0)
    assert (made.kind, made.steps, made.sample_rate, made.group_size) == (ReleaseKind.TRAIN, 1, 0.125, 3)
    assert made.noise_multiplier == 2.0 and step(PLAN, noise=2.5).noise_multiplier == 2.5
    # Coordinates that stay lengthen a user's vector: the same noise is then less than it was planned for.
    for noise, local in ((math.nextafter(2.0, 0), 0), (2.0, 40_000)):
        with pytest.raises(PrivacyError, match="agreed noise multiplier"):
            step(PLAN, noise=noise, local=local)
    assert step(PLAN, noise=2.5, local=40).integers != made.integers


def test_and_the_clip_of_the_settings() -> None:
    for clip in (math.nextafter(CLIP, 0), math.nextafter(CLIP, 1)):
        with pytest.raises(PrivacyError, match="clip"):
            step(PLAN, noise=2.0, clip=clip)
    off = replace(PLAN, budget=math.inf, noise_multiplier=0.0)
    assert step(off, noise=0.0, clip=2 * CLIP).noise_multiplier == 0.0


@pytest.mark.parametrize("clipping", ["fixed", "adaptive"])
@pytest.mark.parametrize("private", [True, False])
def test_the_step_is_the_one_that_was_planned(clipping: Any, private: bool) -> None:
    training = TrainingSettings(clip=CLIP, sample_rate=0.5, clipping=clipping)
    plan = PLAN if private else replace(PLAN, budget=math.inf, noise_multiplier=0.0)
    made = mechanism_of(plan, training, users=400, dimension=7, group_size=3)
    assert (made.users, made.sample_rate, made.dimension, made.group_size) == (400, 0.5, 7, 3)
    assert (made.clip, made.noise_multiplier) == ((CLIP, 2.0) if private else (math.inf, 0.0))
    assert (made.quantile is not None) == (private and clipping == "adaptive")
    if made.quantile is not None:
        assert (made.quantile.target, made.quantile.rate) == (training.clip_quantile, training.clip_rate)
        assert (made.quantile.least, made.quantile.most, made.quantile.noise) == (*CLIPS, 10.0)  # a 20th of 200 users
