"""Federated averaging of both LoRA factors."""

from __future__ import annotations

from typing import ClassVar

from strategies.base import AdapterStrategy, Card


class FedAvg(AdapterStrategy):
    """New adapter = old + mean of the platforms' changes, weighted by declared users (McMahan et al. 2017).

    A and B are averaged apart, and mean(B) mean(A) is not mean(B A): the more the platforms differ, the further the
    product is from what any of them trained. `ffa` has no such gap.
    """

    card: ClassVar[Card] = Card(
        name="fedavg",
        when="a few large platforms (the default); A and B are averaged apart, so their product is only near the mean",
        trusts="the users that platforms declare, as weights",
        sends="A and B",
    )
