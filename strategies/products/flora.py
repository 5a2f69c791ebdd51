"""FLoRA: every platform's factors are stacked, and the stack goes into the base."""

from __future__ import annotations

from typing import ClassVar

from shared.model.adapter import drawn
from shared.model.low_rank_sums import ProductSum
from shared.model.residual_factors import added, maps_in, split_residual
from shared.protocol.messages import Arrays
from strategies.base import Adapter, Card
from strategies.products.base import Products, ProductStrategy


class FLoRA(ProductStrategy):
    """The mean of the products, as stacked factors (Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with
    Heterogeneous Low-Rank Adaptations").

    [w_1 B_1, ..., w_n B_n] [A_1; ...; A_n] = sum w_i B_i A_i goes into the residual, of rank n r more each round until it is as
    wide as the map; then every platform begins the next round with a new A, drawn from the seed, and B = 0. Every platform is in
    the stack: the published code of FLoRA's baseline keeps only client 0, which a test here would notice.
    """

    card: ClassVar[Card] = Card(
        name="flora",
        when="as exact, where every round should begin afresh; the download grows by every platform's rank each round",
        trusts="declared users; the coordinator with each platform's own (noised) factors",
        sends="A and B",
    )

    def products(self, adapter: Adapter) -> Products:
        """A stack, and the A that follows."""
        return Stack(adapter, seed=self.settings.seed, again=self.round)


class Stack(Products):
    """The running sum of the products.

    Args:
        seed, again: Which A the next round begins with.
    """

    def __init__(self, sent: Adapter, *, seed: int, again: int) -> None:
        self._adapter, self._residual = split_residual(sent)
        self._seed, self._again = seed, again
        self._sums = {
            name: ProductSum(sent[f"{name}.lora_B"].shape[0], sent[f"{name}.lora_A"].shape[1]) for name in maps_in(sent)
        }
        self._weight = 0

    def add(self, change: Arrays, *, weight: int) -> None:
        """Stack one platform's factors as they were when its round was over."""
        for name, total in self._sums.items():
            a, b = f"{name}.lora_A", f"{name}.lora_B"
            total.add(self._adapter[b] + change[b].astype(float), self._adapter[a] + change[a].astype(float), weight=weight)
        self._weight += weight

    def adapter(self) -> Adapter:
        """A new A, B = 0, and everything learnt so far in the residual."""
        layout = {name: (array.shape[0], array.shape[1]) for name, array in self._adapter.items()}
        result = drawn(layout, seed=self._seed, again=self._again)
        for name, total in self._sums.items():
            result |= added(self._residual, name, total.scaled(1 / self._weight))
        return result
