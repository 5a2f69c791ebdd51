"""FedSA-LoRA: A is shared, every platform keeps a B of its own."""

from __future__ import annotations

from typing import ClassVar

from strategies.base import AdapterStrategy, Card


class FedSA(AdapterStrategy):
    """Platforms train A and B, and only A is sent and averaged (Guo et al. 2025, "Selective Aggregation for Low-Rank
    Adaptation in Federated Learning"): A was found to hold what is common, B what is a platform's own.

    B lives in the platform's run state and enters neither an update nor a request; its gradient passes the same joint clip
    and noise as A's, because A's later rounds depend on it. The coordinator's B, and so the published model's, is the zero
    that it began with: by itself that model scores as the untouched backbone. It is a start for a platform that trains
    its own B on the shared A; the platforms of the run evaluate and recommend with their own.
    """

    card: ClassVar[Card] = Card(
        name="fedsa",
        when="unlike platforms that recommend for themselves; the published model alone is a bare start (B = 0)",
        trusts="the users that platforms declare, as weights",
        sends="A; each platform's B never leaves it",
    )
