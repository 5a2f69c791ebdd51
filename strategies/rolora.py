"""RoLoRA: B and A in alternate rounds, so that each round averages one factor over one and the same other."""

from __future__ import annotations

from typing import ClassVar

from strategies.base import AdapterStrategy, Card


class RoLoRA(AdapterStrategy):
    """Odd rounds train and average B, even rounds A (Chen et al. 2025, "Robust Federated Finetuning of LLMs via
    Alternating Optimization of LoRA").

    In a round the other factor is the same on every platform, and the product is linear in the one that moves: the mean of the
    products is the product of the mean, as in `ffa`, but A is learnt too. B comes first: it begins at zero, and A
    has no gradient until B is not.
    """

    card: ClassVar[Card] = Card(
        name="rolora",
        when="as ffa, where a frozen A is too poor; learns A and B in turns, exact in each round, in twice the rounds",
        trusts="the users that platforms declare, as weights",
        sends="B and A in turns, half of fedavg",
    )
