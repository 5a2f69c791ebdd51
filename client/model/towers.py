"""The two towers on one platform: items to a bank of unit vectors, users to unit vectors, with shared weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.batching import Passes, filled, length_step
from client.compute.device_transfer import sent
from client.compute.feature_cache import Ids, TrunkCache
from client.compute.resident_features import Features
from client.examples.vectors import SourceVectors, VectorRows
from client.fusion.operators import Fusion
from shared.layers.lora import Parameters
from shared.model.encoder import Batch, Encoder

_MULTIPLE = {"cuda": 8}
"""A GPU's matrix units want lengths of a multiple of 8; a processor has no use for padding."""


class Rows:
    """Sequences with their vectors, ready to be encoded in batches.

    Args:
        features: The sequences' trunk features.
        at: int64 (n,). Row numbers among them.
        vectors: The rows' source vectors.
    """

    def __init__(self, features: TrunkCache | Features, at: NDArray[np.int64], vectors: VectorRows) -> None:
        self._features, self._at, self._vectors = features, at, vectors
        self.lengths = features.lengths(at)

    def __len__(self) -> int:
        return len(self._at)

    def padded(self, rows: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
        """Tokens of each of some rows, up to a multiple of so many; int64, of the shape of `rows`."""
        return -(-self.lengths[rows] // multiple) * multiple

    def some(self, rows: NDArray[np.int64]) -> Rows:
        """Some of the rows, in that order."""
        return Rows(self._features, self._at[rows], self._vectors.some(rows))

    def texts_alone(self) -> Rows:
        """The same rows without their source vectors."""
        return Rows(self._features, self._at, VectorRows(values={}, present={}))

    def take(self, rows: NDArray[np.int64], device: torch.device, *, multiple: int = 1) -> tuple[Tensor, Tensor, SourceVectors]:
        """Trunk features, mask and vectors of some rows, padded to a multiple of so many tokens."""
        longest = int(self.padded(rows, multiple).max(initial=multiple))
        hidden, mask = self._features.gather(self._at[rows], length=longest)
        return hidden, mask, self._vectors.take(rows, device)


def cached_rows(
    cache: TrunkCache, sequences: list[Ids], vectors: VectorRows, progress: Callable[[int], None] | None = None
) -> Rows:
    """Rows whose trunk features are computed now where the cache lacks them."""
    return Rows(cache, cache.rows(sequences, progress), vectors)


class Towers:
    """Encoder and fusion operator together.

    Args:
        encoder: The shared encoder.
        fusion: How source vectors join the text.
    """

    def __init__(self, encoder: Encoder, fusion: Fusion) -> None:
        self.encoder, self.fusion = encoder, fusion
        device = encoder.device.type
        self._passes, self._apart = Passes(device), Passes(device, apart=True)

    def vectors(self, hidden: Tensor, mask: Tensor, sources: SourceVectors, parameters: Parameters) -> Tensor:
        """Unit vectors (n, width), float32, of rows under parameters (one copy, or one per row)."""
        tokens = self.fusion.tokens(parameters, sources)
        batch = Batch(hidden=hidden, mask=mask, tokens=tokens[0] if tokens else None, token_mask=tokens[1] if tokens else None)
        return self.fusion.combine(parameters, self.encoder.pooled(batch, parameters), sources)

    @torch.no_grad()
    def encode(
        self,
        rows: Rows,
        parameters: Mapping[str, Tensor],
        progress: Callable[[int], None] | None = None,
        *,
        apart: bool = False,
    ) -> Tensor:
        """Unit vectors of all rows, float32 (n, width), batched by length so that padding stays small.

        Args:
            apart: Whether a row's vector depends to the last bit on that row alone, as it must where rows are of users and
                something of them is released. Takes a little more time.
        """
        order = np.argsort(rows.lengths, kind="stable")
        device = self.encoder.device
        multiple = length_step(device.type) if apart else _MULTIPLE.get(device.type, 1)
        passes = self._apart if apart else self._passes

        def encoded(part: slice, size: int) -> Tensor:
            wanted = order[part]
            taken = rows.take(filled(wanted, size), device, multiple=multiple)
            return self.vectors(*taken, parameters)[: len(wanted)]

        parts: list[Tensor] = []
        for vectors in passes.run(rows.padded(order, multiple), encoded):
            parts.append(vectors)
            if progress:
                progress(len(vectors))
        if not parts:
            return torch.zeros(0, self.encoder.hidden, device=device)
        result = torch.empty(len(order), parts[0].shape[1], device=device)
        result[sent(order, device)] = torch.cat(parts)
        return result
