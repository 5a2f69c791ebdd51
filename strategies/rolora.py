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
        when="as ffa, where a frozen A is too poor: learns A too, exact in each round, half the traffic; twice the rounds",
        trusts="each platform's declared users as its weight; nobody with rows, as every platform adds its own noise",
        sends="B of every trained map in odd rounds, A in even rounds",
    )
