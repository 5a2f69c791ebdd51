"""Who takes part in a run, and what the platforms answered in one of its phases."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.base.errors import ProtocolError
from shared.protocol.messages import Metrics, Personalised, Preferred, Refusal, Summed, Update


class NoUpdate(ProtocolError):
    """A round brought no usable update from any platform, or too few for what combines them."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A platform that takes part: the node that speaks for it, and what it declared when it joined.

    Args:
        rank: LoRA rank that it trains, where ranks may differ; None: the run's.
    """

    node: int
    platform: str
    users: int
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What is kept of an update once it is in the sum: everything but its arrays."""

    platform: str
    users: int
    epsilon: float
    ledger: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Drop:
    """An answer that was left out, and why."""

    node: int
    platform: str
    reason: str


@dataclass(kw_only=True)
class RoundReport:
    """What the platforms answered in one phase of a round.

    Args:
        refusals: By node, since a refusal's own word for its platform is not checked.
    """

    updates: list[Receipt] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    personalised: list[Personalised] = field(default_factory=list)
    preferred: list[Receipt] = field(default_factory=list)
    refusals: dict[int, Refusal] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)


def receipt_of(update: Update | Preferred | Summed) -> Receipt:
    """The receipt of an update, or of a sum."""
    return Receipt(
        platform=update.platform,
        users=update.users,
        epsilon=update.epsilon,
        ledger=update.ledger,
        seconds=update.seconds,
    )
