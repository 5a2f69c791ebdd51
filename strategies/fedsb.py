"""Fed-SB: only the r x r matrix between two fixed factors is trained and sent."""

from __future__ import annotations

from typing import ClassVar

from strategies.base import AdapterStrategy, Card


class FedSB(AdapterStrategy):
    """The change of a map is B R A with fixed B and A (Singhal et al. 2025, "Fed-SB: A Silver Bullet for Extreme Communication
    Efficiency and Performance in (Private) Federated LoRA Fine-Tuning"); `shared/model/fixed_factors.py` says which, and why.

    Linear in R, so the mean of the products is the product of the mean. Traffic and noise grow with r^2 for each map and not
    with its width, so a larger rank (32 to 64) costs what another strategy pays for 8.
    """

    card: ClassVar[Card] = Card(
        name="fedsb",
        when="least traffic and least noise, at a rank of 32 or more; learns only within fixed directions",
        trusts="the users that platforms declare, as weights",
        sends="an r x r matrix a map, whatever the model's width",
    )
