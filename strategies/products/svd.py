"""FlexLoRA: the mean of the products, cut to the rank of the run; platforms may train different ranks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shared.model.low_rank_sums import ProductSum
from shared.model.residual_factors import maps_in
from shared.protocol.messages import Arrays
from strategies.base import Adapter, Card, Member
from strategies.products.base import Products, ProductStrategy

_ROW = 1 / np.sqrt(3)
"""Norm of a row of A: what PEFT's uniform start has, so that a local step moves the product as it does in other strategies."""


class FlexLoRA(ProductStrategy):
    """Truncated mean of products (Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous
    Tasks and Client Resources"), by QR and SVD of the stacked factors: the best approximation of its rank (Eckart & Young
    1936), and the full matrix is never formed.

    The global factors are in the order of their singular values, and a platform of rank p trains the first p of them. A
    slice of ranks is averaged over the platforms that own it, each weighted by its declared users, instead of over all:
    averaged over all, the upper slices shrink every round by the weight of the platforms that lack them, and the rank
    collapses to the smallest one.
    """

    card: ClassVar[Card] = Card(
        name="svd",
        when="platforms of different strength (`rank` in the platform file); cuts off what exact would keep",
        trusts="declared users; the coordinator with each platform's own (noised) factors",
        sends="A and B, at the platform's own rank",
    )

    def rank(self, member: Member | None) -> int | None:
        """The member's own rank, at most the run's; None where it is the run's."""
        most = self.settings.model.rank
        return member.rank if member is not None and member.rank is not None and member.rank < most else None

    def view(self, adapter: Adapter, rank: int | None) -> Adapter:
        """The first `rank` rows of every A and columns of every B."""
        return adapter if rank is None else leading(adapter, rank)

    def products(self, adapter: Adapter) -> Products:
        """Sums by slice."""
        return Slices(adapter, {self.rank(member) for member in (self.members or {}).values()})


class Slices(Products):
    """For each slice of ranks, the running sum of the products of those who own it.

    Args:
        ranks: Ranks that platforms train below the global one; None is the global one.
    """

    def __init__(self, sent: Adapter, ranks: Iterable[int | None]) -> None:
        self._adapter = sent
        self._names = maps_in(sent)
        whole = {sent[f"{name}.lora_A"].shape[0] for name in self._names}
        ends = sorted({rank for rank in ranks if rank is not None} | whole)
        self._bounds = list(zip([0, *ends], ends, strict=False))
        self._sums = {
            (name, end): ProductSum(sent[f"{name}.lora_B"].shape[0], sent[f"{name}.lora_A"].shape[1])
            for name in self._names
            for end in ends
        }
        self._weights = dict.fromkeys(ends, 0)

    def add(self, change: Arrays, *, weight: int) -> None:
        """Fold one update in, of any of the ranks."""
        owned = change[f"{self._names[0]}.lora_A"].shape[0]
        for begin, end in self._bounds:
            if end > owned:
                break
            self._weights[end] += weight
            for name in self._names:
                a, b = f"{name}.lora_A", f"{name}.lora_B"
                right = self._adapter[a][begin:end] + change[a][begin:end].astype(np.float64)
                left = self._adapter[b][:, begin:end] + change[b][:, begin:end].astype(np.float64)
                self._sums[name, end].add(left, right, weight=weight)

    def mean(self, name: str) -> ProductSum:
        """The mean product of a map: each slice over its owners. A slice without any owner this round stays as it was."""
        total = ProductSum(self._adapter[f"{name}.lora_B"].shape[0], self._adapter[f"{name}.lora_A"].shape[1])
        for begin, end in self._bounds:
            if self._weights[end]:
                total.add(*self._sums[name, end].scaled(1 / self._weights[end]).factors())
            else:
                total.add(self._adapter[f"{name}.lora_B"][:, begin:end], self._adapter[f"{name}.lora_A"][begin:end])
        return total

    def adapter(self) -> Adapter:
        """Factors of the best approximation, largest singular value first, in the shapes that were sent."""
        result = dict(self._adapter)
        for name in self._names:
            a, b = f"{name}.lora_A", f"{name}.lora_B"
            result[a], result[b] = truncated(self.mean(name), spare=self._adapter[a])
        return result


def leading(adapter: Arrays, rank: int) -> Adapter:
    """The first `rank` rows of every A and columns of every B."""
    return {
        name: np.ascontiguousarray(array[:rank] if name.endswith(".lora_A") else array[:, :rank])
        for name, array in adapter.items()
    }


def truncated(total: ProductSum, *, spare: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A sum's best approximation as (A, B), of the rank of `spare`, float32.

    A has orthogonal rows of one length, and B holds the sizes, so that A is as good to train on as at the start however small the
    product is. Where the sum has a smaller rank, the rest of A is what is new in the rows of `spare`, and the rest of B zero.

    Args:
        spare: (r, d), a row for every rank.
    """
    rank, spectrum = len(spare), total.spectrum()
    kept = min(rank, len(spectrum.values))
    right, left = spectrum.right[:kept], spectrum.left[:, :kept] * spectrum.values[:kept]
    fresh = spare[kept:].astype(np.float64)
    for _ in range(2):  # twice is enough (Kahan): once leaves rounding behind
        fresh = fresh - fresh @ right.T @ right
    basis, core = np.linalg.qr(fresh.T)
    signs = np.where(np.diagonal(core) < 0, -1.0, 1.0)
    rows = np.zeros((rank - kept, right.shape[1]))
    rows[: basis.shape[1]] = (basis * signs).T  # more rows than columns have no more directions: the others stay zero
    a = np.concatenate([right, rows]) * _ROW
    b = np.concatenate([left, np.zeros((left.shape[0], rank - kept))], axis=1) / _ROW
    return a.astype(np.float32), b.astype(np.float32)
