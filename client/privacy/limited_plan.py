"""A run's plan under a platform's limits, what all runs together and what one run may spend; and the step that it pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from client.config.platform_file import PlatformFile
from client.privacy.mechanism import Mechanism, Quantile
from client.privacy.release_plan import plan_of
from shared.base.settings import CLIPS, Settings, TrainingSettings
from shared.privacy.accountants import PREFERRED
from shared.privacy.plan import Plan
from shared.privacy.releases import Release


def plan_within(file: PlatformFile, settings: Settings, *, budget: float, spent: Sequence[Release] = (), **public: Any) -> Plan:
    """The plan of a run on this platform, on its own terms.

    Args:
        budget: Epsilon that all runs together may spend.
        spent: What the ledger holds of other runs.
        public: As `client.privacy.release_plan.plan_of` takes it.

    Guarantees: with the charges of other runs the plan stays within `budget`, and by itself within the platform's
        `maximum_epsilon`: of the two calibrated noises the larger is taken, and more noise never spends more.

    Raises:
        PrivacyError: one of the limits cannot carry the plan.
    """
    plan = plan_of(file, settings, budget=budget, spent=spent, **public)
    most = file.federation.maximum_epsilon
    if most is not None and most < budget and math.isfinite(budget):
        alone = plan_of(file, settings, budget=most, **public)
        if alone.noise_multiplier > plan.noise_multiplier:
            releases = (*alone.releases, *spent)
            together = PREFERRED.epsilon(releases, alone.delta)
            plan = replace(alone, releases=releases, budget=budget, epsilon=together.epsilon, accountant=together.accountant)
    return plan


def mechanism_of(
    plan: Plan,
    training: TrainingSettings,
    *,
    users: int,
    dimension: int,
    group_size: int,
    clips: tuple[float, float] = CLIPS,
) -> Mechanism:
    """The training step that the plan pays for.

    Args:
        dimension: Parameters that the step trains, those that stay on the platform included.
        group_size: Users whose texts one user's rows reach.
        clips: Between which an adaptive bound stays.
    """
    adaptive = plan.private and training.clipping == "adaptive"
    return Mechanism(
        users=users,
        sample_rate=training.rate(users),
        clip=training.clip if plan.private else math.inf,
        noise_multiplier=plan.noise_multiplier,
        dimension=dimension,
        group_size=group_size,
        quantile=_quantile(training, users, clips) if adaptive else None,
    )


def _quantile(training: TrainingSettings, users: int, clips: tuple[float, float]) -> Quantile:
    # A twentieth of the expected batch, as the paper proposes: it costs about a hundredth of the noise multiplier.
    return Quantile(
        target=training.clip_quantile,
        rate=training.clip_rate,
        noise=training.rate(users) * users / 20,
        least=clips[0],
        most=clips[1],
    )
