"""A run's plan under both of a platform's limits: what all runs together may spend, and what one run may."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from client.budget import plan_of
from client.platform_file import PlatformFile
from shared.privacy.accountants import PREFERRED
from shared.privacy.plan import Plan
from shared.privacy.releases import Release
from shared.settings import Settings


def plan_within(file: PlatformFile, settings: Settings, *, budget: float, spent: Sequence[Release] = (), **public: Any) -> Plan:
    """The plan of a run on this platform, on its own terms.

    Args:
        budget: Epsilon that all runs together may spend.
        spent: What the ledger holds of other runs.
        public: As `client.budget.plan_of` takes it.

    Guarantees: with the charges of other runs the plan stays within `budget`, and by itself within the platform's
        `maximum_epsilon`: of the two calibrated noises the larger is taken, and more noise never spends more.

    Raises:
        PrivacyError: one of the limits cannot carry the plan, or its noise is below the platform's minimum.
    """
    plan = plan_of(file, settings, budget=budget, spent=spent, **public)
    most = file.federation.maximum_epsilon
    if most is not None and most < budget and math.isfinite(budget):
        alone = plan_of(file, settings, budget=most, **public)
        if alone.noise_multiplier > plan.noise_multiplier:
            releases = (*alone.releases, *spent)
            together = PREFERRED.epsilon(releases, alone.delta)
            plan = replace(alone, releases=releases, budget=budget, epsilon=together.epsilon, accountant=together.accountant)
    file.federation.require_noise(plan.noise_multiplier)
    return plan
