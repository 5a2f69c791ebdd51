"""Ranking quality on held-out interactions: full ranking over the catalogue without the user's known items.

With rank r of the held-out item among the candidates (1 is best; ties count half): NDCG@10 = 1 / log2(r + 1) if r <= 10
else 0 (one relevant item, so the ideal is 1); HR@10 = [r <= 10]; AUC = (candidates - r) / (candidates - 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.compute.device_transfer import sent
from client.examples.split import Ragged

TOP = 10


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the evaluated users; each metric lies in [0, 1]."""

    ndcg: float
    hr: float
    auc: float
    users: int


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


def quality(rank: NDArray[np.float64], candidates: NDArray[np.int64]) -> Quality:
    """Metrics of ranks.

    >>> quality(np.array([1.0, 3.0]), np.array([101, 101]))
    Quality(ndcg=0.75, hr=1.0, auc=0.99, users=2)
    """
    if not len(rank):
        return Quality(ndcg=0.0, hr=0.0, auc=0.0, users=0)
    gain, hit, auc = per_user_metrics(rank, candidates)
    return Quality(ndcg=float(gain.mean()), hr=float(hit.mean()), auc=float(auc.mean()), users=len(rank))


def per_user_metrics(
    rank: NDArray[np.float64], candidates: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """NDCG@10, HR@10 and AUC of every user, each float64 (n,) in [0, 1]."""
    hit = rank <= TOP
    gain = np.where(hit, 1.0 / np.log2(rank + 1.0), 0.0)
    auc = (candidates - rank) / np.maximum(candidates - 1, 1)
    return gain, hit.astype(np.float64), np.clip(auc, 0.0, 1.0)


def exclusion(excluded: Ragged, rows: NDArray[np.int64], items: int, device: torch.device | None = None) -> Tensor:
    """Lists of excluded items as a mask, bool (rows, items)."""
    row, _, item = excluded.entries(rows)
    mask = torch.zeros(len(rows), items, dtype=torch.bool, device=device)
    mask[sent(row, mask.device), sent(item, mask.device)] = True
    return mask
