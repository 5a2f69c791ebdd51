"""Trunk features of many rows, and some of them as a padded batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.batching import within_memory
from client.compute.device_transfer import sent

_SHARE = 4
"""A copy takes a quarter of a GPU's free memory at most: what trains needs the rest."""


class Features:
    """Rows one after another, without padding.

    On a GPU a copy of them is kept in its memory where it fits: from the processor's, a batch would take longer to
    arrive than to be trained on.

    Args:
        flat: (tokens, width), on the processor; a memory map, as a rule.
        ends: int64 (rows + 1,). Token at which each row ends, 0 before the first.
        device, dtype: Of what `gather` gives.
    """

    def __init__(self, flat: Tensor, ends: NDArray[np.int64], device: torch.device, dtype: torch.dtype) -> None:
        self._flat, self._ends, self._device, self._dtype = flat, ends, device, dtype
        self._asked = False

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row, int64, of the shape of `rows`."""
        return self._ends[rows + 1] - self._ends[rows]

    def gather(self, rows: NDArray[np.int64], *, length: int) -> tuple[Tensor, Tensor]:
        """Features and mask of rows, padded to so many tokens.

        Returns:
            (n, length, width), zero where padded; bool (n, length).
        """
        flat = self._near()
        start, lengths = (sent(of, flat.device) for of in (self._ends[rows], self.lengths(rows)))
        span = torch.arange(length, device=flat.device)
        mask = span < lengths[:, None]
        where = (start[:, None] + span).clamp(max=len(flat) - 1)
        hidden = flat[where] * mask.unsqueeze(-1)
        return sent(hidden, self._device).to(self._dtype), sent(mask, self._device)

    def _near(self) -> Tensor:
        if not self._asked:
            self._asked = True
            if self._flat.nbytes <= room(self._device):
                copy = within_memory(partial(self._flat.to, self._device), last=False)
                self._flat = self._flat if copy is None else copy
        return self._flat


def room(device: torch.device) -> int:
    """Bytes that a copy may take of the device's own memory."""
    return torch.cuda.mem_get_info(device)[0] // _SHARE if device.type == "cuda" else 0
