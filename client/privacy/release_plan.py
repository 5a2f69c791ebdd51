"""A platform's plan for one run: what it will release and what that costs, before anything is released."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from client.config.platform_file import PlatformFile
from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.privacy.plan import Plan, PreferencePlan, evaluation_rate, make_plan
from shared.privacy.releases import Release, ReleaseKind
from shared.protocol.quality import WIDTH
from shared.secagg.fixed_point import FixedPoint, planning

if TYPE_CHECKING:
    from client.privacy.mechanism import CountMechanism


def metrics_mechanism(settings: Settings, *, users: int, group_size: int, private: bool) -> CountMechanism:
    """How a deployed platform's metrics are sampled and noised.

    Args:
        users: Declared number of users.
    """
    from client.privacy.mechanism import CountMechanism

    return CountMechanism(
        kind=ReleaseKind.EVALUATE,
        noise_multiplier=settings.privacy.metrics_noise_multiplier if private else 0.0,
        dimension=WIDTH,
        group_size=group_size,
        sample_rate=evaluation_rate(users),
    )


def preference_plan(file: PlatformFile, settings: Settings, *, items: int | None = None) -> PreferencePlan | None:
    """What of preferences the platform is to release, or None where the run or its own file wants none.

    Args:
        items: Of the platform's catalogue; no more can be in the sum.
    """
    asked = settings.preferences
    if not ((asked.items or asked.map) and file.federation.preferences):
        return None
    return PreferencePlan(
        share=asked.share, items=min(asked.items, items or asked.items), map_share=asked.map_share, directions=asked.map
    )


def plan_of(
    file: PlatformFile,
    settings: Settings,
    *,
    budget: float,
    group_size: int,
    parameters: int,
    items: int | None = None,
    exact_metrics: bool = False,
    spent: Sequence[Release] = (),
) -> Plan:
    """The plan under which the platform would take part.

    Args:
        budget: Epsilon that may be spent in all.
        group_size: Examples that one user may touch.
        parameters: Most parameters that one step trains, those that stay on the platform included.
        items: Of the platform's catalogue.
        exact_metrics: In a simulation metrics are exact and no release.
        spent: What the ledger holds of other runs; it counts against the same budget.

    Raises:
        PrivacyError: the budget cannot carry the plan.
    """
    preferences = preference_plan(file, settings, items=items)
    if preferences is None and not settings.trains:
        raise PrivacyError(
            "this platform keeps its users out of sums of preferences, and the run does nothing else",
            where=f"{file.path}, [federation] preferences = false",
            do="train adapters, or let its users count",
        )
    evaluations: list[Release] = []
    if settings.evaluations and not exact_metrics and file.federation.metrics and math.isfinite(budget):
        one = metrics_mechanism(settings, users=file.users, group_size=group_size, private=True).release()
        evaluations = [replace(one, integers=planning())] * settings.evaluations
    return make_plan(
        budget=budget,
        delta=file.privacy.delta,
        users=file.users,
        sample_rate=settings.training.rate(file.users),
        steps=settings.steps,
        preferences=preferences,
        prior_noise_multiplier=settings.privacy.prior_noise_multiplier,
        group_size=group_size,
        parameters=parameters,
        evaluations=[*evaluations, *spent],
        integers=planning(),
        shared=settings.distributed,
        accept_noise=settings.privacy.accept_noise,
    )


def round_release(plan: Plan, point: FixedPoint, *, settings: Settings, users: int, group_size: int, local: int) -> Release:
    """What one round of the secure sum costs this platform's users, under the fixed point that all agreed on.

    Args:
        point: Its `honest` is for the caller to have checked against the platform's own count of colluders.
        users: Declared number of this platform's users.
        group_size: Examples that one user may touch.
        local: Parameters of the step that stay on the platform.

    Raises:
        PrivacyError: the agreed noise is less than this platform's plan needs, or the clip is another.
    """
    multiplier = point.multiplier_with(local)
    if not multiplier >= plan.noise_multiplier:
        raise PrivacyError(
            f"the agreed noise multiplier {multiplier:.6g} is below the {plan.noise_multiplier:.6g} of this plan",
            where="the secure sum",
            do="the coordinator takes the largest that any platform needs; do not answer one that does not",
        )
    if plan.private and point.clip != settings.training.clip:
        raise PrivacyError(
            f"the agreed clip {point.clip:g} is not the settings' {settings.training.clip:g}", where="the secure sum"
        )
    return Release(
        kind=ReleaseKind.TRAIN,
        noise_multiplier=multiplier,
        sample_rate=settings.training.rate(users),
        group_size=group_size,
        integers=point.integers_with(local),
    )


def popularity_release(point: FixedPoint) -> Release:
    """What the round costs that sums popularities: every user's counts once, whatever their social ties."""
    return Release(kind=ReleaseKind.POPULARITY, noise_multiplier=point.noise_multiplier, integers=point.integers)
