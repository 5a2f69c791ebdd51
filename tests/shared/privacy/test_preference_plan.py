"""The plan of sums of preferences: within the budget, by themselves and before training, and as much of it as was asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from shared.base.errors import BudgetExceeded, InputError, NoisyPlan
from shared.privacy.accountants import PREFERRED
from shared.privacy.plan import LIKES_NOISE, Plan, PreferencePlan, make_plan, preference_signal, signal_to_noise
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.fixed_point import planning

DELTA = 1e-4


def plan(**over: Any) -> Plan:
    facts: dict[str, Any] = {
        "budget": 8.0,
        "delta": DELTA,
        "users": 900,
        "sample_rate": 0.1,
        "steps": 0,
        "prior_noise_multiplier": 3.0,
        "group_size": 1,
        "parameters": 1000,
        "preferences": PreferencePlan(share=0.5, items=300),
        "integers": planning(),
    }
    return make_plan(**{**facts, **over})


@pytest.mark.parametrize("budget", [0.5, 2.0, 8.0])
def test_alone_they_take_the_whole_budget_and_no_more(budget: float) -> None:
    made = plan(budget=budget)
    assert [release.kind for release in made.releases] == [ReleaseKind.POPULARITY, ReleaseKind.PREFERENCES]
    assert made.epsilon <= budget and made.noise_multiplier == 0.0
    likes, pairs = made.releases
    assert likes.noise_multiplier == pytest.approx(LIKES_NOISE * pairs.noise_multiplier)
    assert pairs.noise_multiplier == made.preference_noise
    # Any less noise would not do.
    less = [replace(release, noise_multiplier=0.99 * release.noise_multiplier) for release in made.releases]
    assert PREFERRED.epsilon(less, DELTA).epsilon > budget


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_before_training_they_take_their_share(share: float) -> None:
    made = plan(steps=50, preferences=PreferencePlan(share=share, items=300))
    kinds = [release.kind for release in made.releases]
    assert kinds == [ReleaseKind.POPULARITY, ReleaseKind.POPULARITY, ReleaseKind.PREFERENCES, ReleaseKind.TRAIN]
    assert made.epsilon <= 8.0
    prior = PREFERRED.epsilon(made.releases[:1], DELTA).epsilon
    before = PREFERRED.epsilon(made.releases[:3], DELTA).epsilon
    assert before == pytest.approx(prior + share * (8.0 - prior), rel=2e-3)


def test_the_more_they_take_the_noisier_training_is() -> None:
    shares = [plan(steps=50, preferences=PreferencePlan(share=share, items=300)) for share in (0.1, 0.5, 0.9)]
    assert shares[0].preference_noise > shares[1].preference_noise > shares[2].preference_noise
    assert shares[0].noise_multiplier < shares[1].noise_multiplier < shares[2].noise_multiplier
    assert plan(steps=50, preferences=None).noise_multiplier < shares[0].noise_multiplier


def test_without_privacy_nothing_is_planned() -> None:
    assert plan(budget=math.inf).releases == () and plan(budget=math.inf).preference_noise == 0.0


def test_nothing_at_all_is_no_plan() -> None:
    with pytest.raises(InputError, match="no preferences"):
        plan(preferences=None)


def test_what_other_runs_spent_counts() -> None:
    other = plan(budget=4.0).releases
    made = plan(evaluations=other)
    assert made.epsilon <= 8.0 and made.preference_noise > plan().preference_noise


def test_the_signal_is_that_of_users_who_all_like_the_same() -> None:
    # n users with one x of k items: one eigenvalue n, whatever k.
    assert preference_signal(users=100, items=200, noise_multiplier=0.5) == pytest.approx(100 / (0.5 * 20))
    assert preference_signal(users=100, items=200, noise_multiplier=0.0) == math.inf


def test_a_taste_map_alone_takes_the_whole_budget() -> None:
    made = plan(preferences=PreferencePlan(share=0.5, items=0, map_share=0.1, directions=64))
    assert [release.kind for release in made.releases] == [ReleaseKind.TASTE]
    assert 7.9 < made.epsilon <= 8.0 and made.preference_noise == 0.0
    assert made.signal_to_noise == pytest.approx(preference_signal(users=900, items=64, noise_multiplier=made.taste_noise))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_beside_others_it_takes_its_share_first(share: float) -> None:
    asked = PreferencePlan(share=0.5, items=300, map_share=share, directions=64)
    made = plan(steps=50, preferences=asked)
    kinds = [release.kind for release in made.releases]
    likes_and_pairs = [ReleaseKind.POPULARITY, ReleaseKind.PREFERENCES]
    assert kinds == [ReleaseKind.POPULARITY, ReleaseKind.TASTE, *likes_and_pairs, ReleaseKind.TRAIN]
    assert made.epsilon <= 8.0
    prior = PREFERRED.epsilon(made.releases[:1], DELTA).epsilon
    mapped = PREFERRED.epsilon(made.releases[:2], DELTA).epsilon
    assert mapped == pytest.approx(prior + share * (8.0 - prior), rel=2e-3)
    both = PREFERRED.epsilon(made.releases[:4], DELTA).epsilon
    assert both == pytest.approx(mapped + 0.5 * (8.0 - mapped), rel=2e-3)
    assert plan(preferences=replace(asked, directions=0)).preference_noise < plan(preferences=asked).preference_noise


EVALUATION = Release(kind=ReleaseKind.EVALUATE, noise_multiplier=9.0)


@pytest.mark.parametrize("evaluations", [(), (EVALUATION, EVALUATION)], ids=["no evaluation", "two evaluations"])
@pytest.mark.parametrize(("items", "directions"), [(300, 0), (0, 64), (300, 64)], ids=["items", "map", "both"])
@pytest.mark.parametrize("steps", [0, 50], ids=["alone", "before training"])
def test_each_takes_its_share_of_what_is_left_and_the_last_takes_the_rest(
    steps: int, items: int, directions: int, evaluations: tuple[Release, ...]
) -> None:
    budget = 1.9  # the prior leaves less than 1
    asked = PreferencePlan(share=0.4, items=items, map_share=0.3, directions=directions)
    made = plan(budget=budget, steps=steps, preferences=asked, evaluations=evaluations, accept_noise=True)
    wanted = [(ReleaseKind.POPULARITY, 0.0)] if steps else []  # that of the whole catalogue: its noise is given
    if directions:
        wanted += [(ReleaseKind.TASTE, 0.3 if steps or items else 1.0)]
    if items:
        wanted += [(ReleaseKind.POPULARITY, 0.0), (ReleaseKind.PREFERENCES, 0.4 if steps else 1.0)]
    kinds = [kind for kind, _ in wanted] + [ReleaseKind.TRAIN] * bool(steps)
    assert [release.kind for release in made.releases] == [*kinds, *(each.kind for each in evaluations)]
    prior: tuple[Release, ...] = made.releases[: bool(steps)]
    for at, (_, share) in enumerate(wanted):
        if share:
            others = (*prior, *evaluations)
            besides = PREFERRED.epsilon(others, DELTA).epsilon if others else 0.0
            spent = PREFERRED.epsilon((*made.releases[: at + 1], *evaluations), DELTA).epsilon
            assert spent == pytest.approx(besides + share * (budget - besides), rel=3e-3)
            prior = made.releases[: at + 1]
    assert 0.997 * budget < made.epsilon <= budget


@pytest.mark.parametrize("asked", [{"items": 300}, {"items": 0, "directions": 64}, {"items": 300, "directions": 64}])
def test_a_budget_that_others_spend_alone_is_refused_by_its_own_figure(asked: dict[str, int]) -> None:
    other = replace(EVALUATION, noise_multiplier=1.0)
    with pytest.raises(BudgetExceeded, match=r"alone spend epsilon 4\..* of a budget of 2\n") as caught:
        plan(budget=2.0, preferences=PreferencePlan(share=0.5, map_share=0.5, **asked), steps=50, evaluations=[other])
    assert "raise the budget" in caught.value.do


@pytest.mark.parametrize("items", [0, 300])
def test_the_signal_of_a_plan_without_training_is_that_of_its_last_sum(items: int) -> None:
    made = plan(preferences=PreferencePlan(share=0.5, items=items, directions=64))
    width, noise = (items, made.preference_noise) if items else (64, made.taste_noise)
    assert made.signal_to_noise == preference_signal(users=900, items=width, noise_multiplier=noise)


def test_the_signal_of_training_is_held_against_the_noise_over_what_a_user_may_give() -> None:
    """A user's vector of whole numbers may be longer than what it stands for, and the noise is drawn for the longer one."""
    made, part = plan(steps=50, preferences=None), planning()
    noise = made.noise_multiplier * part.norm / part.reach
    assert made.signal_to_noise == signal_to_noise(batch=90.0, steps=50, noise_multiplier=noise, parameters=1000)
    assert part.norm > part.reach


def test_only_ones_own_training_is_refused_as_noise() -> None:
    few = {"users": 5, "steps": 50, "preferences": None}
    with pytest.raises(NoisyPlan):
        plan(**few)
    accepted, pooled = plan(**few, accept_noise=True), plan(**few, shared=True)
    assert accepted == pooled and accepted.signal_to_noise < 1
    assert plan(users=5, preferences=PreferencePlan(share=0.5, items=300)).signal_to_noise < 1  # told, and not refused
