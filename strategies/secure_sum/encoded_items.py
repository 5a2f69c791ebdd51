"""Which round's items' vectors platforms use under the secure sum (`training.bank_steps`).

A platform's vector depends on the model that its items were encoded with. So all platforms of a round must have encoded them for
the same question, and the coordinator says in which round that was; where one of those asked does not have them, all encode anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Which round's items' vectors platforms go on with; of the question, so that they are the same model's on all.

    Args:
        round: Last round that was asked.
        since: Round in which items were encoded.
        question: What was asked then.
        holders: Numbers of those that answered in every round since, and so have them.
    """

    tag: ClassVar[int] = 52

    round: int
    since: int
    question: bytes
    holders: tuple[int, ...] = ()

    def serves(self, server_round: int, asked: set[int], *, rounds: int) -> bool:
        """Whether a round goes on with them; one that is asked again goes on as it was asked before."""
        if server_round == self.round:
            return True
        return 0 < server_round - self.since < rounds and asked <= set(self.holders)

    def answered(self, survivors: tuple[int, ...]) -> Encoded:
        """After a round's vectors came."""
        held = survivors if self.round == self.since else tuple(sorted(set(self.holders) & set(survivors)))
        return replace(self, holders=held)
