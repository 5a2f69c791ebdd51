"""What an attack proves: lower bounds of epsilon beside the claim, and how well members are distinguished from others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from rich.console import Group, RenderableType
from rich.text import Text

from shared.base.terminal_table import terminal_table
from simulations.attack.one_run import CONFIDENCE, CanaryScores, gaussian_epsilon, steinke_epsilon
from simulations.attack.roc import LOW, roc_of

MOST_POINTS = 101
"""Of a curve, as it is kept."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What one attacker proves.

    Args:
        canaries: Scored, half of them in.
        steinke: Lower bound of epsilon that holds for any mechanism.
        gaussian: Lower bound of epsilon, the mechanism's noise taken to be Gaussian.
        area, low: AUROC, and the true-positive rate at a false-positive rate of 1%.
        estimate: Epsilon by the cosine statistic, an estimate without confidence; None where it does not apply.
        roc: (false-positive rate, true-positive rate), from (0, 0) to (1, 1); `MOST_POINTS` at most.
    """

    canaries: int
    steinke: float
    gaussian: float
    area: float
    low: float
    estimate: float | None = None
    roc: tuple[tuple[float, float], ...] = ()

    @property
    def bound(self) -> float:
        """The larger bound; both hold together."""
        return max(self.steinke, self.gaussian)


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """An attack on one release of one platform.

    Args:
        release: What was attacked.
        claim: Epsilon that the platform's ledger claims at `delta`.
        views: Attacker -> what it proves.
    """

    release: str
    platform: str
    claim: float
    delta: float
    views: Mapping[str, View] = field(default_factory=dict)

    @property
    def refuted(self) -> bool:
        """Whether the claim is below what an attack proves."""
        return any(view.bound > self.claim for view in self.views.values())

    def to_json(self) -> str:
        """As JSON text; an infinite claim is the word "inf"."""
        values = {**asdict(self), "refuted": self.refuted, "confidence": CONFIDENCE}
        values["claim"] = "inf" if math.isinf(self.claim) else self.claim
        for name, view in self.views.items():
            values["views"][name]["bound"] = view.bound
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False)


def view_of(scores: CanaryScores, delta: float, *, among: int = 1, estimate: float | None = None) -> View:
    """What some scores prove at `delta`.

    Args:
        among: Views that are to hold together; each bound is taken at its part of the error.
    """
    each = 1 - (1 - CONFIDENCE) / (2 * among)
    roc = roc_of(scores)
    return View(
        canaries=len(scores),
        steinke=steinke_epsilon(scores, delta, confidence=each),
        gaussian=gaussian_epsilon(scores, delta, confidence=each),
        area=roc.area,
        low=roc.at(LOW),
        estimate=estimate,
        roc=roc.points(MOST_POINTS),
    )


def render_attack(report: AttackReport) -> RenderableType:
    """The report for a terminal."""
    claim = "∞" if math.isinf(report.claim) else f"{report.claim:.4g}"
    table = terminal_table(f"Attack on the {report.release} of {report.platform}: ε = {claim} is claimed at δ = {report.delta:g}")
    for name in ("attacker", "canaries", "ε ≥ (any mechanism)", "ε ≥ (Gaussian)", "AUROC", "TPR at 1% FPR", "ε ≈ (cosine)"):
        table.add_column(name, justify="left" if name == "attacker" else "right")
    for name, view in report.views.items():
        estimate = "-" if view.estimate is None else f"{view.estimate:.3f}"
        cells = (f"{view.steinke:.3f}", f"{view.gaussian:.3f}", f"{view.area:.3f}", f"{view.low:.3f}", estimate)
        table.add_row(name, str(view.canaries), *cells)
    said = "REFUTED: an attack proves more than is claimed" if report.refuted else "not refuted, which confirms nothing"
    return Group(
        table,
        Text(f"Bounds hold with confidence {CONFIDENCE:.0%} together. Verdict: {said}.", style="red" if report.refuted else ""),
    )
