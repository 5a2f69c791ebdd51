"""FedEx-LoRA: averaged factors, and the residual that makes their product exact."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from shared.model.adapter import Layout
from shared.model.low_rank_sums import ProductSum
from shared.model.residual_factors import added, maps_in, split_residual
from shared.protocol.messages import Arrays
from strategies.averaging import WeightedMean
from strategies.base import Adapter, Card
from strategies.products.base import Products, ProductStrategy


class FedExact(ProductStrategy):
    """Average A and B, and put mean(B_i A_i) - mean(B_i) mean(A_i) into the base (Singhal et al. 2025, "FedEx-LoRA: Exact
    Aggregation for Federated and Efficient Fine-Tuning of Large Language Models").

    With B_i = B + b_i and A_i = A + a_i the residual is mean(b_i a_i) - mean(b_i) mean(a_i): the two factors' covariance over the
    platforms, of rank at most (n - 1) r for n platforms, so it is kept as factors beside the adapter and grows by that in every
    round until it is as wide as the map. Both means are weighted by declared users.
    """

    card: ClassVar[Card] = Card(
        name="exact",
        when="a few large platforms with local noise that differ much; the download grows with every round",
        trusts="declared users; the coordinator with each platform's own (noised) factors",
        sends="A and B",
    )

    def products(self, adapter: Adapter) -> Products:
        """Means and covariance."""
        return Covariance(adapter)


class Covariance(Products):
    """Running means of A and B, and the running sum of the products of their changes."""

    def __init__(self, sent: Adapter) -> None:
        self._adapter, self._residual = split_residual(sent)
        layout: Layout = {name: (array.shape[0], array.shape[1]) for name, array in self._adapter.items()}
        self._mean = WeightedMean(layout)
        self._sums = {
            name: ProductSum(layout[f"{name}.lora_B"][0], layout[f"{name}.lora_A"][1]) for name in maps_in(self._adapter)
        }
        self._weight = 0

    def add(self, change: Arrays, *, weight: int) -> None:
        """Fold one update in."""
        self._mean.add(change, weight=weight)
        for name, total in self._sums.items():
            total.add(change[f"{name}.lora_B"], change[f"{name}.lora_A"], weight=weight)
        self._weight += weight

    def adapter(self) -> Adapter:
        """Averaged factors, and the residual with the covariance added."""
        mean = self._mean.change()
        result = {name: (array + mean[name]).astype(np.float32) for name, array in self._adapter.items()}
        for name, total in self._sums.items():
            covariance = total.scaled(1 / self._weight)
            covariance.add(mean[f"{name}.lora_B"], mean[f"{name}.lora_A"], weight=-1.0)
            result |= added(self._residual, name, covariance)
        return result
