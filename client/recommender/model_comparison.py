"""Own, global and fused side by side on a platform's held-out items: exact, for its own people; nothing of it may leave.

Whether a platform gains by what was shared is the question, so fused minus own has an interval: bootstrap over users, both models
of a user drawn together (Efron & Tibshirani 1993, "An introduction to the bootstrap").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.examples.split import Split
from client.recommender.own_model import UserScores, exact_ranks
from shared.base.errors import InputError
from shared.protocol.quality import METRICS, NDCG, per_user_metrics

Floats = NDArray[np.float64]

FEW_EVENTS, RARE_ITEMS = 3, 3
"""Training items of a user with few; training likes of an item that is rare."""
RESAMPLES = 2000
COMPARED = tuple(METRICS)
MODELS = ("own", "global", "fused")
"""In the order in which people are shown them."""
SHOWN = (NDCG, "hr@10")
"""Metrics that people are shown."""
_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class PairedGain:
    """Fused minus own in NDCG@10, its mean over users and a 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SegmentQuality:
    """The models' quality for some of the held-out items.

    Args:
        users: Whose held-out items are in the segment.
        quality: Model -> metric -> mean over these users; empty where there are none.
        gain: None without a fused model, or without users.
    """

    users: int
    quality: Mapping[str, Mapping[str, float]]
    gain: PairedGain | None


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """Quality by segment.

    Args:
        segments: "all", "few-events" (users with 1 to 3 items that train) and "rare-items" (held-out items that at most 3 users
            of this platform like).
    """

    segments: Mapping[str, SegmentQuality]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, rounded to 6 digits."""
        return {
            name: {
                "users": segment.users,
                **{model: {key: round(value, 6) for key, value in means.items()} for model, means in segment.quality.items()},
                "fused_minus_own": None
                if segment.gain is None
                else {key: round(getattr(segment.gain, key), 6) for key in ("mean", "low", "high")},
            }
            for name, segment in self.segments.items()
        }


@dataclass(frozen=True, kw_only=True)
class RankedUsers:
    """What every model makes of every user with a held-out item.

    Args:
        users: int64 (users,). Their numbers in the tables.
        ranks: Model -> float64 (users,). Of the held-out item.
        quality: Model -> float64 (users, metrics), the metrics of `COMPARED`.
        segments: Segment -> bool (users,).
    """

    users: NDArray[np.int64] = field(repr=False)
    ranks: Mapping[str, Floats] = field(repr=False)
    quality: Mapping[str, Floats] = field(repr=False)
    segments: Mapping[str, NDArray[np.bool_]] = field(repr=False)


Ranked = tuple[Floats, NDArray[np.int64]]
"""Rank of every held-out item, and the number of candidates, each (users,)."""


def rank_users(models: Mapping[str, UserScores], split: Split) -> RankedUsers:
    """Rank every held-out item by every model; one that has two names is asked once."""
    known: dict[int, Ranked] = {}
    for model in models.values():
        if id(model) not in known:
            known[id(model)] = exact_ranks(model, split)
    return ranked_users({name: known[id(model)] for name, model in models.items()}, split)


def ranked_users(ranked: Mapping[str, Ranked], split: Split) -> RankedUsers:
    """The metrics of ranks.

    Args:
        ranked: Model -> its ranks.
    """
    place = [list(METRICS).index(name) for name in COMPARED]
    return RankedUsers(
        users=np.flatnonzero(split.held >= 0),
        ranks={name: rank for name, (rank, _) in ranked.items()},
        quality={name: per_user_metrics(*one)[:, place] for name, one in ranked.items()},
        segments=compared_segments(split),
    )


def compared_segments(split: Split) -> dict[str, NDArray[np.bool_]]:
    """Segment -> bool (users with a held-out item,)."""
    users = np.flatnonzero(split.held >= 0)
    likes = np.bincount(split.train.values, minlength=int(split.held.max(initial=-1)) + 1)
    length = split.train.lengths()[users]
    return {
        "all": np.ones(len(users), np.bool_),
        "few-events": (length >= 1) & (length <= FEW_EVENTS),
        "rare-items": likes[split.held[users]] <= RARE_ITEMS,
    }


def compare_models(models: Mapping[str, UserScores], split: Split, *, seed: int) -> ModelComparison:
    """The same as means by segment, and fused less own.

    Args:
        models: Name -> model; "own" and "fused" are compared if both are there.
        seed: Of the bootstrap.

    Returns:
        Segment -> `users`, `quality` (model -> metric -> mean over users, in [0, 1]), and `gain`: fused less own in NDCG@10.

    | given | result |
    |---|---|
    | own alone | no gain: None |
    | fused is own | a gain of 0, from 0 to 0 |
    | nobody held out; a segment of nobody | 0 users, no quality, no gain |
    """
    return compared(rank_users(models, split), seed=seed)


def compared(ranked: RankedUsers, *, seed: int) -> ModelComparison:
    """The same of users that are ranked."""
    return ModelComparison(segments={name: _segment(ranked.quality, mask, seed) for name, mask in ranked.segments.items()})


def _segment(found: Mapping[str, Floats], mask: NDArray[np.bool_], seed: int) -> SegmentQuality:
    count = int(mask.sum())
    if not count:
        return SegmentQuality(users=0, quality={}, gain=None)
    quality = {model: dict(zip(COMPARED, values[mask].mean(0).tolist(), strict=True)) for model, values in found.items()}
    gain = None
    if {"own", "fused"} <= set(found):
        gain = bootstrap_interval((found["fused"] - found["own"])[mask, COMPARED.index(NDCG)], seed=seed)
    return SegmentQuality(users=count, quality=quality, gain=gain)


def bootstrap_interval(differences: Floats, *, seed: int, resamples: int = RESAMPLES) -> PairedGain:
    """Mean of the differences, and the 2.5 and 97.5 percentiles of the means of resampled users.

    Args:
        differences: float64 (users,), at least one.

    Returns:
        `mean`, `low` and `high`, in the differences' own unit.

    Raises:
        InputError: there is no user.

    | given | result |
    |---|---|
    | one user | `mean`, `low` and `high` are equal |
    | no user | `InputError` |
    | NaN for a user | NaN, all three |

    >>> bootstrap_interval(np.array([0.25, 0.25]), seed=0)
    PairedGain(mean=0.25, low=0.25, high=0.25)
    """
    random, users = np.random.default_rng(seed), len(differences)
    if not users:
        raise InputError("there is no user whose difference could be resampled", do="compare models of users who have some")
    at_once = max(1, _AT_ONCE // users)
    means = [
        differences[random.integers(0, users, (min(at_once, resamples - begin), users))].mean(1)
        for begin in range(0, resamples, at_once)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return PairedGain(mean=float(differences.mean()), low=float(low), high=float(high))
