"""What an accountant answers, and the names under which a ledger records it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """How an epsilon was computed.

    Version 0.1.0 had Opacus compute what it recorded.
    """

    PRV = "prv"
    RDP = "rdp"
    OPACUS_PRV = "opacus-prv"
    OPACUS_RDP = "opacus-rdp"
    DP_ACCOUNTING_PLD = "dp-accounting-pld"
    DP_ACCOUNTING_RDP = "dp-accounting-rdp"
    NONE = "none"  # nothing was released, or something without noise


@dataclass(frozen=True, kw_only=True)
class Spent:
    """An upper bound of epsilon.

    Args:
        epsilon: In nats, >= 0; infinite where something was released without noise.
        accountant: The method that gave it; of several, the loosest.
        tight: Whether the method is within about two per cent of the best that is known. A loose
            bound is as valid, but a smaller figure is not thereby refuted.
    """

    epsilon: float
    accountant: Method
    tight: bool = True
