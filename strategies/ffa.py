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
        when="many or unlike platforms, or strong noise; exact for the product, A stays as it was drawn",
        trusts="the users that platforms declare, as weights",
        sends="B, half of fedavg",
    )
