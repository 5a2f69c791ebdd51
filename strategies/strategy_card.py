"""What a person reads before choosing a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Which part of a strategy a name denotes; a strategy has at most one of each, joined by '+'."""

    UPDATES = "updates"  # what is trained, what is sent, what the global model is
    COMBINING = "combining"  # how one change is made of many
    OPTIMIZER = "optimizer"  # how the combined change is applied
    AFTERWARDS = "afterwards"  # what follows the last round
    UNTRAINED = "untrained"  # no rounds: preferences alone; goes with no other part


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a person needs to know to choose a strategy: when to use it, what it trusts, what it sends."""

    name: str
    when: str
    trusts: str
    sends: str
    role: Role = Role.UPDATES

    @property
    def line(self) -> str:
        """The card in one line."""
        return f"{self.name}: {self.text}"

    @property
    def text(self) -> str:
        """The card without its name."""
        return f"{self.when}. Trusts {self.trusts}. Sends {self.sends}."
