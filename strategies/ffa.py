"""FFA-LoRA: A stays as it was drawn, only B is trained and averaged."""

from __future__ import annotations

from typing import ClassVar

from strategies.base import AdapterStrategy, Card


class FFA(AdapterStrategy):
    """Freeze A, average B (Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning").

    With one A for all, mean(B_i) A = mean(B_i A): the average is exact for the product. Noise enters once, in B,
    where training both factors also adds the product of two noises.
    """

    card: ClassVar[Card] = Card(
        name="ffa",
        when="for many or very different platforms, or strong noise; exact for the product B A, and half the traffic",
        trusts="each platform's declared users as its weight; nobody with rows, as every platform adds its own noise",
        sends="B of every trained map",
    )
