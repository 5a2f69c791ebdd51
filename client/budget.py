"""A platform's plan for one run: what it will release and what that costs, before anything is released."""

from __future__ import annotations

import math
from collections.abc import Sequence

from client.mechanism import CountMechanism
from client.platform_file import PlatformFile
from shared.adapter import layout_of
from shared.backbone import shape_of
from shared.privacy.plan import Plan, make_plan
from shared.privacy.releases import Release, ReleaseKind
from shared.settings import Settings


def plan_of(
    file: PlatformFile,
    settings: Settings,
    *,
    budget: float,
    group_size: int,
    local: int,
    exact_metrics: bool = False,
    spent: Sequence[Release] = (),
) -> Plan:
    """The plan under which the platform would take part.

    Args:
        budget: Epsilon that may be spent in all.
        group_size: Examples that one user may touch.
        local: Number of platform-local trainable parameters.
        exact_metrics: In a simulation metrics are exact and no release.
        spent: What the ledger holds of other runs; it counts against the same budget.

    Raises:
        PrivacyError: the budget cannot carry the plan.
    """
    evaluations: list[Release] = []
    if not exact_metrics and math.isfinite(budget):
        every = settings.evaluate_every
        count = 2 + ((settings.rounds - 1) // every if every else 0)
        evaluations = [metrics_mechanism(settings, group_size=group_size, private=True).release()] * count
    layout = layout_of(shape_of(settings.model.backbone), settings.model)
    return make_plan(
        budget=budget,
        delta=file.privacy.delta,
        users=file.users,
        sample_rate=settings.training.sample_rate,
        steps=settings.steps,
        prior_noise_multiplier=settings.privacy.prior_noise_multiplier,
        group_size=group_size,
        parameters=sum(math.prod(shape) for shape in layout.values()) + local,
        evaluations=[*evaluations, *spent],
    )


def metrics_mechanism(settings: Settings, *, group_size: int, private: bool) -> CountMechanism:
    """How a deployed platform's metrics are noised."""
    multiplier = settings.privacy.metrics_noise_multiplier if private else 0.0
    return CountMechanism(kind=ReleaseKind.EVALUATE, noise_multiplier=multiplier, group_size=group_size)
