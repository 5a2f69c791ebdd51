"""Ranking metrics by name: what platforms measure, send, and are compared by. A new metric is one entry here, and a new
version of the messages (`PROTOCOL`), since both sides must measure the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError

TOP = 10
"""Length of the recommended list that NDCG@10 and HR@10 look at."""
NDCG = "ndcg@10"
"""The metric by which models are compared."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a held-out item's rank.

    Args:
        title: As people write it.
        per_user: (ranks, candidates), each float64 (n,), ranks from 1 with ties counted half -> float64 (n,) in [0, 1].
    """

    title: str
    per_user: Callable[[Floats, Floats], Floats]


def ndcg_at(rank: Floats, k: int) -> Floats:
    """1 / log2(rank + 1) in a list of k, else 0 (Järvelin & Kekäläinen 2002): one item is relevant, so the ideal is 1."""
    return np.where(rank <= k, 1.0 / np.log2(rank + 1.0), 0.0)


def hit_rate_at(rank: Floats, k: int) -> Floats:
    """1 in a list of k, else 0."""
    return (rank <= k).astype(np.float64)


def _auc(rank: Floats, candidates: Floats) -> Floats:
    """The share of the other candidates that rank below; 1 where there are none, as of whatever ranks first."""
    share = np.clip((candidates - rank) / np.maximum(candidates - 1, 1), 0.0, 1.0)
    return np.where(candidates > 1, share, 1.0)


METRICS: Mapping[str, Metric] = {
    NDCG: Metric(title="NDCG@10", per_user=lambda rank, candidates: ndcg_at(rank, TOP)),
    "hr@10": Metric(title="HR@10", per_user=lambda rank, candidates: hit_rate_at(rank, TOP)),
    "auc": Metric(title="AUC", per_user=_auc),
}

WIDTH = 1 + len(METRICS)
"""Numbers that one user contributes to metrics: one, and every metric."""


@dataclass(frozen=True)
class Quality(Mapping[str, float]):
    """A mean over users of every metric, in the order of `METRICS`.

    Args:
        means: Metric's name -> its mean, in [0, 1].

    Raises:
        ProtocolError: a metric is missing, unknown, or out of range.
    """

    means: Mapping[str, float]

    def __post_init__(self) -> None:
        if set(self.means) != set(METRICS):
            raise ProtocolError(f"metrics differ by {sorted(set(self.means) ^ set(METRICS))}")
        for name, mean in self.means.items():
            if isinstance(mean, bool) or not isinstance(mean, float | int) or not 0 <= mean <= 1:
                raise ProtocolError(f"{name} {mean!r} is out of range")
        object.__setattr__(self, "means", {name: float(self.means[name]) for name in METRICS})

    def __getitem__(self, name: str) -> float:
        return self.means[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.means)

    def __len__(self) -> int:
        return len(self.means)

    def rounded(self) -> dict[str, float]:
        """For JSON, rounded to 6 digits."""
        return {name: round(mean, 6) for name, mean in self.means.items()}


def per_user_metrics(rank: Floats, candidates: NDArray[np.int64]) -> Floats:
    """Every metric of every user, float64 (n, metrics), each in [0, 1].

    >>> dict(zip(METRICS, per_user_metrics(np.array([3.0]), np.array([101]))[0].tolist()))["ndcg@10"]
    0.5
    >>> dict(zip(METRICS, per_user_metrics(np.array([1.0]), np.array([1]))[0].tolist()))["auc"]
    1.0
    """
    among = candidates.astype(np.float64)
    return np.stack([metric.per_user(rank, among) for metric in METRICS.values()], axis=1)


def mean_quality(rank: Floats, candidates: NDArray[np.int64]) -> Quality:
    """The users' mean of every metric; 0 where there are no users.

    >>> mean_quality(np.array([1.0, 3.0]), np.array([101, 101]))["auc"]
    0.99
    """
    if not len(rank):
        return Quality(dict.fromkeys(METRICS, 0.0))
    return Quality(dict(zip(METRICS, per_user_metrics(rank, candidates).mean(0).tolist(), strict=True)))
