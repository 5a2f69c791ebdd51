"""A run's plan under a platform's limits, what all runs together and what one run may spend; and the step that it pays for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from client.config.platform_file import PlatformFile
from client.privacy.mechanism import Mechanism, Quantile
from client.privacy.release_plan import plan_of, preference_plan
from client.privacy.run_share import RunShare
from shared.base.errors import BudgetExceeded
from shared.base.settings import CLIPS, Settings, TrainingSettings
from shared.privacy.accountants import PREFERRED
from shared.privacy.plan import Plan
from shared.privacy.releases import Release

_PARTS = (1.0, 0.8, 0.6, 0.4, 0.2)
"""Of what one run may cost by itself, tried until it fits beside all others; the first nearly always does."""


def plan_within(
    file: PlatformFile, settings: Settings, *, share: RunShare, simulation: bool, spent: Sequence[Release] = (), **public: Any
) -> Plan:
    """The plan of a run on this platform, on its own terms.

    Args:
        share: What the run may spend.
        simulation: Whether noise may be less than the platform's file wants; there is no coordinator to distrust.
        spent: What the ledger holds of other runs.
        public: As `client.privacy.release_plan.plan_of` takes it.

    Guarantees: with the charges of other runs the plan stays within `share.total`, and by itself within `share.alone`.

    Raises:
        BudgetExceeded: the share cannot carry the plan.
        NoisyPlan: what it carries would be noise.
        PrivacyError: the platform has nothing to release, or the noise is less than the platform's file allows.
    """
    try:
        plan = plan_of(file, settings, budget=share.total, spent=spent, **public)
        if math.isfinite(share.alone):
            own = plan.releases[: len(plan.releases) - len(spent)]
            if PREFERRED.epsilon(own, plan.delta).epsilon > share.alone:
                plan = _alone(file, settings, share=share, spent=spent, **public)
    except BudgetExceeded as error:
        raise BudgetExceeded(
            f"the run may spend epsilon {share.epsilon:.4g} of the {share.left:.4g} that this platform has left, and "
            f"that does not carry it: {error.found}",
            where=f"{file.name}, at delta {file.privacy.delta:g}",
            do="ask for more (--epsilon, up to the platform's maximum_epsilon_per_run), or for fewer releases with more noise",
        ) from None
    if not simulation:
        planned = [plan.noise_multiplier] * settings.trains
        if preference_plan(file, settings) is not None:
            planned += [plan.preference_noise] * bool(settings.preferences.items)
            planned += [plan.taste_noise] * bool(settings.preferences.map)
        file.federation.require_noise(*planned)
    return replace(plan, budget=share.budget)


def _alone(file: PlatformFile, settings: Settings, *, share: RunShare, spent: Sequence[Release], **public: Any) -> Plan:
    """A plan that by itself keeps to what the platform lets one run cost, and with all other runs to the share."""
    for part in _PARTS:
        plan = plan_of(file, settings, budget=part * share.alone, **public)
        releases = (*plan.releases, *spent)
        together = PREFERRED.epsilon(releases, plan.delta)
        if together.epsilon <= share.total:
            return replace(plan, releases=releases, epsilon=together.epsilon, accountant=together.accountant)
    raise BudgetExceeded(
        f"beside epsilon {share.spent:.4g} of other runs no part of {share.alone:.4g} keeps to {share.total:.4g}"
    )


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
