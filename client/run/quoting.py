"""What a run would cost this platform, said before anything is spent, remembered or made ready for it.

A quote follows from the platform file, the public catalogue and table columns, the run's settings and the ledger; no row enters.
It is the plan that joining makes, by the same functions, without the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from client.config.platform_file import PlatformFile
from client.personalisation.personal_plan import reserved
from client.privacy.limited_plan import plan_within
from client.privacy.run_share import RunShare, share_of
from client.run.adapter_partition import Part
from client.sources.tables import Tables
from shared.base.settings import Settings
from shared.model.backbone import shape_of
from shared.privacy.plan import Plan
from shared.privacy.releases import Release
from shared.protocol.messages import Quote, Quoted
from shared.secagg.fixed_point import stretch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RunQuote:
    """A run's plan on this platform, and what of the budget it is made for.

    Args:
        plan: With the releases of other runs in it.
        share: What the whole run may spend.
        group_size: Examples that one user may touch.
        need: Noise multiplier of training, under a secure sum that of what leaves.
        kept_back: Whether something comes after the rounds that takes the rest of the share.
    """

    plan: Plan
    share: RunShare
    group_size: int
    need: float
    kept_back: bool

    @property
    def epsilon(self) -> float:
        """By how much the run would raise what the platform has spent; infinite where privacy is off."""
        if not self.plan.private:
            return math.inf
        return self.share.epsilon if self.kept_back else max(0.0, self.plan.epsilon - self.share.spent)


def quote_run(
    file: PlatformFile, settings: Settings, tables: Tables, *, budget: float, spent: Sequence[Release], simulation: bool
) -> RunQuote:
    """The plan that joining a run makes, for its platform's own people and for the coordinator.

    Args:
        tables: Of which ids of items, widths of vectors and bounds of social ties are read, which no user's row changes.
        budget: Epsilon of all runs together.
        spent: What other runs have released.
        simulation: As `plan_within` and `share_of` take it.

    Raises:
        BudgetExceeded: what the run may spend does not carry it.
        NoisyPlan: what it carries would be noise.
        PrivacyError: the platform's file allows less.
    """
    share = share_of(file, settings, budget=budget, spent=spent, simulation=simulation)
    group_size = 1 + sum(ties.influence + ties.friends for ties in tables.ties.values() if ties.influence)
    parameters, longer = _trained(file, settings, tables) if settings.trains else (1, 1.0)
    plan = plan_within(
        file,
        settings,
        share=share.part(reserved(settings)),
        simulation=simulation,
        spent=spent,
        group_size=group_size if settings.trains else 1,
        parameters=parameters,
        items=tables.items,
        exact_metrics=simulation and settings.exact_metrics,
    )
    return RunQuote(
        plan=plan,
        share=share,
        group_size=group_size,
        need=plan.noise_multiplier * longer if settings.distributed else plan.noise_multiplier,
        kept_back=reserved(settings) < 1,
    )


def answer_quote(
    file: PlatformFile, request: Quote, tables: Tables, *, budget: float, spent: Sequence[Release], simulation: bool, trust: bytes
) -> Quoted:
    """What the coordinator learns of it.

    Args:
        trust: The platform's trust statement for a secure sum; empty without.

    Raises:
        PrivacyError: as `quote_run`.
    """
    found = quote_run(file, request.settings, tables, budget=budget, spent=spent, simulation=simulation)
    shown, plan = file.federation.show_budget, found.plan
    left = found.share.left if plan.private else math.inf
    return Quoted(
        run=request.run,
        platform=file.name,
        users=file.users,
        epsilon=found.epsilon,
        delta=plan.delta,
        shown=shown,
        left=left if shown else 0.0,
        left_after=(max(0.0, left - found.epsilon) if plan.private else math.inf) if shown else 0.0,
        noise_multiplier=found.need,
        preference_noise=plan.preference_noise,
        taste_noise=plan.taste_noise,
        trust=trust,
    )


def _trained(file: PlatformFile, settings: Settings, tables: Tables) -> tuple[int, float]:
    """Parameters that a step trains, those that stay here included; and how much larger these make the noise of what leaves."""
    shape = shape_of(settings.model.backbone)
    local: Mapping[str, Tensor] = {}
    if widths := tables.vector_widths:
        from client.fusion.operators import fusion_named  # it loads torch, which takes longer than all of a quote

        local = fusion_named(settings.model.fusion).initial(widths, shape.hidden, np.random.default_rng(0))
    part = Part.of(settings, shape, rank=file.rank)
    staying = sum(value.numel() for value in local.values()) + sum(math.prod(part.layout[name]) for name in part.kept)
    staying += settings.training.objective == "click"  # its bias
    return part.learning + staying, max(stretch(part.size(factors), staying) for factors in part.scheme.cycle)
