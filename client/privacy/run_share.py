"""What one run may spend of a platform's budget: what it asks for, as far as the platform's file and its ledger go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from client.config.platform_file import PlatformFile
from shared.base.errors import BudgetExceeded
from shared.base.settings import Settings
from shared.privacy.accountants import PREFERRED
from shared.privacy.releases import Release


@dataclass(frozen=True, kw_only=True)
class RunShare:
    """How far a run may raise what a platform has spent.

    The accountant composes all releases of a ledger at the platform's delta; `spent` is the epsilon of those of other runs, and
    `left` what the budget has above it. A run's epsilon is by how much its releases raise that total: with them the ledger holds
    `spent + epsilon` at most. It is no sum of epsilons of single runs, which composition makes larger than the total.

    Args:
        budget: Epsilon of all runs together; infinite where privacy is off.
        spent: Epsilon of what other runs have released.
        epsilon: By which this run may raise it, at most.
        alone: What the releases of this run may cost by themselves, at most; infinite without the platform's own limit.
    """

    budget: float
    spent: float
    epsilon: float
    alone: float = math.inf

    @property
    def left(self) -> float:
        """Epsilon that is left for all further runs."""
        return max(0.0, self.budget - self.spent)

    @property
    def total(self) -> float:
        """What the ledger may hold with this run, at most."""
        return min(self.budget, self.spent + self.epsilon)

    def part(self, part: float) -> RunShare:
        """What a plan may use of it, above 0 and at most 1, the rest being kept for what comes after."""
        return replace(self, epsilon=part * self.epsilon, alone=part * self.alone)


def share_of(file: PlatformFile, settings: Settings, *, budget: float, spent: Sequence[Release], simulation: bool) -> RunShare:
    """What a run may spend on this platform.

    A run asks for `privacy.epsilon`, or without it for the part `privacy.share` of what is left; in a simulation, whose budget
    is the run's own, for all of it. The platform's `maximum_epsilon_per_run` caps that, and the run by itself, too.

    Args:
        budget: Epsilon of all runs together.
        spent: What other runs have released.

    Raises:
        BudgetExceeded: nothing is left.
    """
    if not math.isfinite(budget):
        return RunShare(budget=budget, spent=0.0, epsilon=math.inf)
    before = PREFERRED.epsilon(spent, file.privacy.delta).epsilon if spent else 0.0
    left = budget - before
    if left <= 0:
        raise BudgetExceeded(
            f"epsilon {before:.4g} of {budget:g} is spent: nothing is left for another run",
            where=f"{file.name}, at delta {file.privacy.delta:g}",
            do="leave this run, or raise the budget in the platform file for everybody to see",
        )
    cap = math.inf if file.federation.maximum_epsilon_per_run is None else file.federation.maximum_epsilon_per_run
    asked = settings.privacy.share * left if settings.privacy.epsilon is None else settings.privacy.epsilon
    return RunShare(budget=budget, spent=before, epsilon=min(left if simulation else asked, left, cap), alone=cap)
