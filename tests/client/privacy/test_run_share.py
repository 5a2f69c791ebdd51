"""What one run may spend: what it asks for, as far as the ledger and the platform's file go; and that its plan keeps to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.config.platform_file import PlatformFile, load
from client.privacy.limited_plan import plan_within
from client.privacy.run_share import RunShare, share_of
from shared.base.errors import BudgetExceeded
from shared.base.settings import Settings, build
from shared.privacy.accountants import PREFERRED
from shared.privacy.releases import Release, ReleaseKind

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
