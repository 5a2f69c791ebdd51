"""Ranks of held-out items: full ranking over the catalogue without the user's known items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.device_transfer import sent
from client.examples.split import Ragged

ROWS_AT_ONCE = 256


def ranks(scores: Tensor, targets: Tensor, excluded: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of each row's target among its candidates, and the number of candidates.

    Args:
        scores: (n, items).
        targets: int64 (n,). Never excluded.
        excluded: bool (n, items).

    Returns:
        float64 (n,) ranks from 1 to the number of candidates, ties counted half; int64 (n,). On the processor: not every
        device has float64. A score that is not a number is the lowest there is, whatever made it.
    """
    scores = torch.where(torch.isnan(scores), -torch.inf, scores)
    own = scores.gather(1, targets[:, None])
    candidate = ~excluded
    better = ((scores > own) & candidate).sum(1).cpu()
    equal = ((scores == own) & candidate).sum(1).cpu() - 1
    return 1.0 + better.double() + equal.double() / 2, candidate.sum(1).cpu()


def ranks_by_parts(
    scores: Callable[[slice], Tensor], targets: NDArray[np.int32], excluded: Ragged, rows: NDArray[np.int64], items: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`ranks` of some rows, scored a part at a time; each (n,).

    Args:
        scores: Rows begin ... end - 1 of `rows` -> (end - begin, items).
        targets: int32 (n,).
        excluded: Items by row.
        rows: int64 (n,). Which of the rows of `excluded` they are.
    """
    found, among = [np.zeros(0)], [np.zeros(0, np.int64)]
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(begin, min(begin + ROWS_AT_ONCE, len(rows)))
        scored = scores(part)
        wanted = torch.from_numpy(targets[part].astype(np.int64)).to(scored.device)
        rank, candidates = ranks(scored, wanted, exclusion(excluded, rows[part], items, scored.device))
        found.append(rank.numpy())
        among.append(candidates.numpy())
    return np.concatenate(found), np.concatenate(among)


def exclusion(excluded: Ragged, rows: NDArray[np.int64], items: int, device: torch.device | None = None) -> Tensor:
    """Lists of excluded items as a mask, bool (rows, items)."""
    row, _, item = excluded.entries(rows)
    mask = torch.zeros(len(rows), items, dtype=torch.bool, device=device)
    mask[sent(row, mask.device), sent(item, mask.device)] = True
    return mask
