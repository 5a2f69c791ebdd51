"""The same epsilons by Opacus: what an auditor holds against a ledger's own figures.

Platforms plan and record by `rdp` and `prv`, which need neither Opacus nor torch. Here Opacus composes, on the grid that `prv`
chooses, and converts Rényi curves. Opacus' own accountant composes the removal alone; here both directions are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from shared.privacy import rdp
from shared.privacy.groups import Removal
from shared.privacy.prv import Grid, Loss, discretised


def opacus_rdp_epsilon(removals: Sequence[Removal], delta: float) -> float:
    """As `rdp.rdp_epsilon`, converted by Opacus."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders, total = rdp.composed_curve(removals)
    if not len(orders) or delta <= 0:
        return float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "the optimal order is the largest": still a bound
        spent, _ = get_privacy_spent(orders=list(orders), rdp=list(total), delta=delta)
    return max(0.0, float(spent))


def opacus_composed(losses: Sequence[Loss], steps: Sequence[int], grid: Grid, delta: float) -> float:
    """As `prv.compose_losses`, by Opacus.

    Raises:
        RuntimeError, ValueError: it cannot (opacus#591, #601, #604).
    """
    from opacus.accountants.analysis import prv as opacus_prv

    domain = opacus_prv.Domain(*grid.ends, grid.size)
    parts = []
    for loss in losses:
        masses, shift = discretised(loss, grid)
        parts.append(opacus_prv.DiscretePRV(pmf=masses, domain=domain.shift_right(shift)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = opacus_prv.compose_heterogeneous(dprvs=parts, num_self_compositions=list(steps))
        _, _, upper = whole.compute_epsilon(delta, grid.delta_error, grid.error)
    return float(upper)
