"""What is said of an attack, to people and to programs: the same figures, and "refuted" where more is proven than claimed."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from simulations.attack.attack_report import AttackReport, View, render_attack

WHITE = View(
    canaries=300, steinke=1.23456, gaussian=2.5, area=0.98765, low=0.4321, estimate=3.14159, roc=((0.0, 0.0), (1.0, 1.0))
)
BLACK = View(canaries=299, steinke=0.5, gaussian=0.25, area=0.5, low=0.0)


def report(claim: float, **views: View) -> AttackReport:
    return AttackReport(
        release="updates", platform="shop", claim=claim, delta=1e-5, views=views or {"white": WHITE, "black": BLACK}
    )


def shown(of: AttackReport) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_attack(of))
    return " ".join(console.export_text().split())


@pytest.mark.parametrize(("claim", "refuted"), [(2.4, True), (2.5, False), (8.0, False), (0.0, True), (math.inf, False)])
def test_a_claim_is_refuted_by_a_larger_bound_of_any_attacker(claim: float, refuted: bool) -> None:
    assert WHITE.bound == 2.5 and BLACK.bound == 0.5
    for views in ({"white": WHITE, "black": BLACK}, {"black": BLACK, "white": WHITE}, {"white": WHITE}):
        made = report(claim, **views)
        assert made.refuted is refuted and json.loads(made.to_json())["refuted"] is refuted
        assert ("Verdict: REFUTED" in shown(made)) is refuted and (
            "not refuted, which confirms nothing" in shown(made)
        ) is not refuted
    assert not AttackReport(release="updates", platform="shop", claim=0.0, delta=1e-5).refuted


def test_a_program_reads_every_figure() -> None:
    found = json.loads(report(8.0).to_json())
    assert (found["claim"], found["delta"], found["release"], found["platform"], found["confidence"]) == (
        8.0, 1e-5, "updates", "shop", 0.95,
    )  # fmt: skip
    assert found["views"]["white"] == {
        "canaries": 300, "steinke": 1.23456, "gaussian": 2.5, "bound": 2.5, "area": 0.98765, "low": 0.4321, "estimate": 3.14159,
        "roc": [[0.0, 0.0], [1.0, 1.0]],
    }  # fmt: skip
    assert found["views"]["black"]["bound"] == 0.5 and found["views"]["black"]["estimate"] is None
    assert json.loads(report(math.inf).to_json())["claim"] == "inf"


def test_a_person_reads_them_rounded() -> None:
    text = shown(report(7.98765))
    assert "Attack on the updates of shop: ε = 7.988 is claimed at δ = 1e-05" in text
    assert "white 300 1.235 2.500 0.988 0.432 3.142" in text and "black 299 0.500 0.250 0.500 0.000 -" in text
    assert "confidence 95% together" in text
    assert "ε = ∞ is claimed" in shown(report(math.inf))
