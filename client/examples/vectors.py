"""Sources that are vectors, as a model's rows see them.

An item's row has the item's own vectors. A user's row has the user's own vectors and, for every source of item
vectors, the mean over the items of their context. Absent is zero with presence False.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.device_transfer import sent
from client.examples.user_examples import Examples
from client.sources.tables import Tables

SourceVectors = Mapping[str, tuple[Tensor, Tensor]]
"""Source -> (values float32 (n, width), present bool (n,))."""


@dataclass(frozen=True, kw_only=True)
class VectorRows:
    """Vectors of many rows, on the processor."""

    values: Mapping[str, NDArray[np.float32]]
    present: Mapping[str, NDArray[np.bool_]]

    def some(self, rows: NDArray[np.int64]) -> VectorRows:
        """Some of the rows, in that order."""
        return VectorRows(
            values={name: part[rows] for name, part in self.values.items()},
            present={name: part[rows] for name, part in self.present.items()},
        )

    def take(self, rows: NDArray[np.int64] | slice, device: torch.device) -> SourceVectors:
        """The vectors of some rows."""
        return {name: (sent(self.values[name][rows], device), sent(self.present[name][rows], device)) for name in self.values}


def item_vectors(tables: Tables) -> VectorRows:
    """One row per item; users' sources are absent."""
    values, present = {}, {}
    for name, width in tables.vector_widths.items():
        own = tables.item_vectors.get(name)
        values[name] = own.values if own else np.zeros((tables.items, width), np.float32)
        present[name] = own.present if own else np.zeros(tables.items, np.bool_)
    return VectorRows(values=values, present=present)


def user_vectors(tables: Tables, examples: Examples) -> VectorRows:
    """One row per example."""
    values: dict[str, NDArray[np.float32]] = {}
    present: dict[str, NDArray[np.bool_]] = {}
    for name, own in tables.user_vectors.items():
        values[name], present[name] = own.values[examples.user], own.present[examples.user]
    lengths = examples.context.lengths()
    rows = np.repeat(np.arange(len(examples)), lengths)
    for name, own in tables.item_vectors.items():
        items = examples.context.values
        there = own.present[items]
        count = np.bincount(rows[there], minlength=len(examples)).astype(np.float32)
        total = np.zeros((len(examples), own.values.shape[1]), np.float32)
        np.add.at(total, rows[there], own.values[items[there]])
        values[name] = (total / np.maximum(count, 1)[:, None]).astype(np.float32)
        present[name] = count > 0
    return VectorRows(values=values, present=present)
