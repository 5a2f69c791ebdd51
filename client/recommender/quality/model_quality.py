"""All metrics of all models on a platform's held-out items, at several list lengths, by segment, with intervals over users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.evaluation.click_metrics import (
    CLICK_METRICS,
    TERMS,
    ReliabilityBin,
    click_figures,
    pair_sums,
    reliability,
)
from client.evaluation.list_metrics import LIST_METRICS, ItemFacts, JudgedLists
from client.evaluation.score_calibration import Calibration
from client.evaluation.user_bootstrap import Estimate, list_estimate, quotient, sum_estimates
from client.examples.split import Split
from client.recommender.lists.top_items import top_items
from client.recommender.own_model import UserScores
from shared.base.progress import Progress, counted

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SCORES_AT_ONCE = 1 << 22
_MOST_USERS_AT_ONCE = 256
_MOST_PAIRS = 200_000_000
"""Pairs that a classifier is judged by; beyond, a part of the users drawn at random represents all."""
_DRAWN_ITEMS = 20_000_000
_LEAST_RESAMPLES, _MOST_RESAMPLES = 40, 200
_DIGITS = 6
_LEAST = np.finfo(np.float32).min


@dataclass(frozen=True, kw_only=True)
class JudgedModel:
    """What a model makes of the held-out users.

    Args:
        lists: What they are shown.
        candidates: int64 (users,). Items that each held-out item was ranked among.
        calibration: Its map to probabilities; None for a model that has none.
        pairs: float64 (users, terms of `client.evaluation.click_metrics`); NaN for users that were not looked at.
    """

    lists: JudgedLists = field(repr=False)
    candidates: NDArray[np.int64] = field(repr=False)
    calibration: Calibration | None
    pairs: Floats = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """One model in one segment.

    Args:
        lists: Length k -> metric -> estimate.
        clicks: Metric of the classifier -> estimate; empty for a model without probabilities.
    """

    lists: Mapping[int, Mapping[str, Estimate]]
    clicks: Mapping[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "at": {str(k): {name: one.as_dict() for name, one in metrics.items()} for k, metrics in self.lists.items()},
            "click": {name: one.as_dict() for name, one in self.clicks.items()} or None,
        }


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """Everything.

    Args:
        lengths: List lengths k.
        users: Segment -> its held-out users.
        segments: Segment -> model -> its figures; empty where a segment has no users.
        calibrations: Model -> its calibration.
        reliability: Model -> bins, of all users.
    """

    lengths: Sequence[int]
    users: Mapping[str, int]
    segments: Mapping[str, Mapping[str, ModelFigures]]
    calibrations: Mapping[str, Calibration]
    reliability: Mapping[str, Sequence[ReliabilityBin]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "lengths": list(self.lengths),
            "segments": {
                name: {"users": self.users[name], "models": {model: one.as_dict() for model, one in models.items()}}
                for name, models in self.segments.items()
            },
            "calibration": {
                model: {
                    "method": calibration.method,
                    "threshold": float(f"{calibration.threshold:.{_DIGITS}g}"),
                    "reliability": [
                        {key: value if key == "pairs" else float(f"{value:.{_DIGITS}g}") for key, value in asdict(one).items()}
                        for one in self.reliability[model]
                    ],
                }
                for model, calibration in self.calibrations.items()
            },
        }


def judge_model(
    model: UserScores,
    split: Split,
    *,
    longest: int,
    calibration: Calibration | None,
    seed: int,
    progress: Progress | None = None,
) -> JudgedModel:
    """Score every user with a held-out item once, and keep what metrics need of it.

    Args:
        longest: Of the lists.
        calibration: Of the model's scores.
        seed: Of the users by whom a classifier is judged, where not all are.
    """
    users = np.flatnonzero(split.held >= 0)
    items = model.scores(users[:1]).shape[1] if len(users) else 0
    most = max(1, _MOST_PAIRS // max(items, 1))
    looked_at = np.ones(len(users), np.bool_)
    if len(users) > most:
        looked_at[:] = False
        looked_at[np.random.default_rng(seed).choice(len(users), most, replace=False)] = True
    length = min(longest, items)
    lists = np.full((len(users), longest), -1, np.int32)
    rank, candidates = np.zeros(len(users)), np.zeros(len(users), np.int64)
    pairs = np.full((len(users), TERMS), np.nan)
    advance = counted(progress, "ranking held-out items", len(users))
    step = max(1, min(_MOST_USERS_AT_ONCE, _SCORES_AT_ONCE // max(items, 1)))
    for begin in range(0, len(users), step):
        part = slice(begin, min(begin + step, len(users)))
        scores = model.scores(users[part]).astype(np.float32)  # a copy
        scores[np.isnan(scores)] = _LEAST
        row, _, item = split.known.entries(users[part])
        scores[row, item] = -np.inf
        target = split.held[users[part]].astype(np.int64)
        own = scores[np.arange(len(target)), target][:, None]
        rank[part] = 0.5 + (scores > own).sum(1) + (scores == own).sum(1) / 2
        candidates[part] = (scores > -np.inf).sum(1)
        lists[part, :length], _ = top_items(scores, length)
        if calibration is not None:
            chosen = looked_at[part]
            pairs[np.arange(part.start, part.stop)[chosen]] = pair_sums(scores[chosen], target[chosen], calibration)
        advance(len(target))
    return JudgedModel(lists=JudgedLists(items=lists, rank=rank), candidates=candidates, calibration=calibration, pairs=pairs)


def quality_report(
    judged: Mapping[str, JudgedModel], segments: Mapping[str, Mask], facts: ItemFacts, *, lengths: Sequence[int], seed: int
) -> QualityReport:
    """Every metric of every model in every segment.

    Args:
        segments: Segment -> bool (users,).
        lengths: List lengths k, at most the longest that was judged.
        seed: Of the bootstrap, which draws the same users for all models.
    """
    names = [(name, k, metric) for name in judged for k in lengths for metric, one in LIST_METRICS.items() if one.per_user]
    values = [LIST_METRICS[metric].per_user(judged[name].lists, facts, k) for name, k, metric in names]  # type: ignore[misc]
    means = np.stack(values, axis=1) if values else np.zeros((0, 0))
    calibrated = [name for name, one in judged.items() if one.calibration is not None]
    found: dict[str, dict[str, ModelFigures]] = {}
    for segment, mask in segments.items():
        found[segment] = {}
        if not mask.any():
            continue
        estimates = dict(zip(names, _means(means[mask], seed), strict=True))
        clicks = {name: _clicks(judged[name].pairs[mask], seed) for name in calibrated}
        for name, one in judged.items():
            lists = {
                k: {metric: estimates[name, k, metric] for metric in LIST_METRICS if (name, k, metric) in estimates}
                for k in lengths
            }
            for metric, how in LIST_METRICS.items():
                for k in lengths if how.pooled else ():
                    lists[k][metric] = _pooled(one.lists.items[mask, :k], metric, facts, seed)
            ordered = {k: {metric: lists[k][metric] for metric in LIST_METRICS} for k in lengths}
            found[segment][name] = ModelFigures(lists=ordered, clicks=clicks.get(name, {}))
    return QualityReport(
        lengths=lengths,
        users={name: int(mask.sum()) for name, mask in segments.items()},
        segments=found,
        calibrations={name: one.calibration for name, one in judged.items() if one.calibration is not None},
        reliability={name: reliability(np.nansum(judged[name].pairs, axis=0)) for name in calibrated},
    )


def _means(values: Floats, seed: int) -> list[Estimate]:
    """Means over the users of whom each metric says something."""
    known = ~np.isnan(values)
    width = values.shape[1]
    sums = np.concatenate([np.where(known, values, 0.0), known], axis=1)
    return sum_estimates(sums, lambda some: quotient(some[:, :width], some[:, width:]), seed=seed)


def _clicks(pairs: Floats, seed: int) -> dict[str, Estimate]:
    looked_at = pairs[~np.isnan(pairs[:, 0])]
    if not len(looked_at):
        return {}
    return dict(zip(CLICK_METRICS, sum_estimates(looked_at, click_figures, seed=seed), strict=True))


def _pooled(items: NDArray[np.int32], metric: str, facts: ItemFacts, seed: int) -> Estimate:
    how = LIST_METRICS[metric].pooled
    assert how is not None
    resamples = int(np.clip(_DRAWN_ITEMS // max(items.size, 1), _LEAST_RESAMPLES, _MOST_RESAMPLES))
    return list_estimate(items, lambda lists: how(lists, facts), seed=seed, resamples=resamples)
