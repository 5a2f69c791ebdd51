"""Metrics of a classifier by name: is this item the next that this person likes? A new one is one entry in `CLICK_METRICS`.

The pairs are those of every user with a held-out item and every item that they have not met; one of a user's pairs is liked, and
the base rate is one in the number of candidates. So accuracy is high whatever is predicted, and says little; log loss, precision
and recall at the threshold that validation chose, and calibration, say more. Every metric is a function of sums over users, so
that its interval is a bootstrap over users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.evaluation.score_calibration import Calibration
from client.evaluation.user_bootstrap import quotient

Floats = NDArray[np.float64]

BINS = 12
"""Of a reliability diagram. Probabilities are small, so their logarithms are cut, from 1e-6 to 1, at equal distances."""
_TERMS = ("users", "pairs", "log loss", "squared error", "right", "predicted", "auc")
_BINNED = ("pairs", "probability", "liked")
TERMS = len(_TERMS) + BINS * len(_BINNED)
_EDGES = np.concatenate([[0.0], np.logspace(-6, 0, BINS)[:-1], [np.inf]])
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class ClickMetric:
    """One metric of a classifier.

    Args:
        title: As people write it.
        of: Named sums over users, float64 (n,) each, and sums by bin, (n, bins) each -> float64 (n,), NaN where not defined.
    """

    title: str
    of: Callable[[Mapping[str, Floats], Mapping[str, Floats]], Floats]


def pair_sums(scores: NDArray[np.float32], targets: NDArray[np.int64], calibration: Calibration) -> Floats:
    """The terms of every metric of some users, float64 (users, `TERMS`).

    Args:
        scores: float32 (users, items), -inf for what the user has met.
        targets: int64 (users,). The item that each likes next, a candidate.
    """
    found = np.zeros((len(scores), TERMS))
    binned = found[:, len(_TERMS) :].reshape(len(scores), len(_BINNED), BINS)
    for row, target in enumerate(targets.tolist()):
        candidate = scores[row] > -np.inf
        liked = np.zeros(len(candidate), np.bool_)
        liked[target] = True
        liked, score = liked[candidate], scores[row, candidate]
        probability = calibration.probabilities(score)
        certain = np.maximum(np.where(liked, probability, 1.0 - probability), _LEAST)
        predicted = probability >= calibration.threshold
        others = max(len(score) - 1, 1)
        own = scores[row, target]
        below = (np.count_nonzero(score < own) + (np.count_nonzero(score == own) - 1) / 2) / others if len(score) > 1 else 1.0
        found[row, : len(_TERMS)] = (
            1.0,
            len(score),
            -np.log(certain).sum(),
            ((probability - liked) ** 2).sum(),
            (predicted & liked).sum(),
            predicted.sum(),
            below,
        )
        place = np.clip(np.searchsorted(_EDGES, probability, side="right") - 1, 0, BINS - 1)
        for side, weights in enumerate((None, probability, liked)):
            binned[row, side] = np.bincount(place, weights=weights, minlength=BINS)
    return found


def click_figures(sums: Floats) -> Floats:
    """Every metric of some sums over users, float64 (n, metrics).

    Args:
        sums: float64 (n, `TERMS`).
    """
    terms, bins = _named(sums)
    return np.stack([metric.of(terms, bins) for metric in CLICK_METRICS.values()], axis=1)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Pairs whose probability is about the same.

    Args:
        predicted: Mean of their probabilities.
        observed: Share that was liked, with its 95 % interval (Wilson 1927).
    """

    pairs: int
    predicted: float
    observed: float
    low: float
    high: float


def reliability(sums: Floats) -> list[ReliabilityBin]:
    """The bins of a reliability diagram that hold a pair, the least probable first.

    Args:
        sums: float64 (`TERMS`,). Sums over users.
    """
    _, bins = _named(sums[None])
    found = []
    for pairs, probability, liked in zip(bins["pairs"][0], bins["probability"][0], bins["liked"][0], strict=True):
        if pairs:
            low, high = _wilson(liked, pairs)
            found.append(
                ReliabilityBin(
                    pairs=int(pairs), predicted=float(probability / pairs), observed=float(liked / pairs), low=low, high=high
                )
            )
    return found


def _named(sums: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
    binned = sums[:, len(_TERMS) :].reshape(len(sums), len(_BINNED), BINS)
    terms = {name: sums[:, place] for place, name in enumerate(_TERMS)}
    return terms, {name: binned[:, place] for place, name in enumerate(_BINNED)}


def _wilson(liked: float, pairs: float, z: float = 1.96) -> tuple[float, float]:
    share, more = liked / pairs, z * z / pairs
    middle = (share + more / 2) / (1 + more)
    half = z * np.sqrt(share * (1 - share) / pairs + more / pairs / 4) / (1 + more)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def _accuracy(terms: Mapping[str, Floats], bins: Mapping[str, Floats]) -> Floats:
    wrong = (terms["users"] - terms["right"]) + (terms["predicted"] - terms["right"])
    return quotient(terms["pairs"] - wrong, terms["pairs"])


def _calibration_error(terms: Mapping[str, Floats], bins: Mapping[str, Floats]) -> Floats:
    """Sum over bins of their share of pairs x |mean probability - share liked| (Naeini et al. 2015), over the base rate."""
    return quotient(np.abs(bins["probability"] - bins["liked"]).sum(1), terms["users"])


CLICK_METRICS: Mapping[str, ClickMetric] = {
    "accuracy": ClickMetric(title="accuracy", of=_accuracy),
    "precision": ClickMetric(title="precision", of=lambda terms, bins: quotient(terms["right"], terms["predicted"])),
    "recall": ClickMetric(title="recall", of=lambda terms, bins: quotient(terms["right"], terms["users"])),
    "f1": ClickMetric(title="F1", of=lambda terms, bins: quotient(2 * terms["right"], terms["predicted"] + terms["users"])),
    "auc": ClickMetric(title="AUC (mean over users)", of=lambda terms, bins: quotient(terms["auc"], terms["users"])),
    "log_loss": ClickMetric(title="log loss", of=lambda terms, bins: quotient(terms["log loss"], terms["pairs"])),
    "brier": ClickMetric(title="Brier score", of=lambda terms, bins: quotient(terms["squared error"], terms["pairs"])),
    "ece": ClickMetric(
        title="expected calibration error",
        of=lambda terms, bins: _calibration_error(terms, bins) * quotient(terms["users"], terms["pairs"]),
    ),
    "relative_ece": ClickMetric(title="the same over the base rate", of=_calibration_error),
}
