"""An audit as a person reads it: every figure, what each verdict is called, and what is said only where it is so."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from shared.ledger.audit import AuditReport, Everywhere, PlatformAudit
from shared.ledger.audit_report import render_audit
from shared.ledger.format import SIGNED
from shared.privacy.spent import Method, Spent


def spent(epsilon: float, method: Method = Method.PRV, *, tight: bool = True) -> Spent:
    return Spent(epsilon=epsilon, accountant=method, tight=tight)


SHOP = PlatformAudit(
    file="shop.jsonl",
    platform="shop",
    entries={"popularity": 1, "train": 20},
    releases=201,
    budget=8.0,
    delta=1e-5,
    recorded=4.50004,
    renyi=spent(4.8, Method.RDP),
    opacus=spent(4.6, Method.OPACUS_PRV),
    dp_accounting=spent(4.512345, Method.DP_ACCOUNTING_PLD),
)


def shown(*platforms: PlatformAudit, **more: Any) -> str:
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(render_audit(AuditReport(run="spring", platforms=platforms, **more)))
    return " ".join(console.export_text().split())


def test_every_figure_of_a_platform_is_in_its_row() -> None:
    text = shown(SHOP)
    assert "Privacy audit of spring" in text and "shop 4.5 4.8 4.6 4.5123 8 1e-05 ok" in text
    assert "shop: 1 popularity, 20 train; 201 mechanism steps in all" in text
    assert "≤" not in text and "OFF" not in text and "Verdict: sound" in text
    unread = PlatformAudit(file="x.jsonl", platform="x", unknown=("it cannot be read",))
    text = shown(unread)
    assert "x - - - - - - cannot tell " in text and "x: nothing; 0 mechanism steps" in text and "x: it cannot be read" in text
    assert "privacy off" not in text and "OFF" not in text and "Verdict: cannot tell" in text


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"opacus": spent(4.6, tight=False)}, "4.8 ≤ 4.6 4.5123 8"),
        ({"dp_accounting": spent(5.0, tight=False)}, "4.8 4.6 ≤ 5 8"),
        ({"opacus": None}, "4.8 - 4.5123 8"),
        ({"dp_accounting": None}, "4.8 4.6 - 8"),
        ({"renyi": None}, "4.5 - 4.6"),
        ({"recorded": 10.0}, "shop 10 4.8"),
        ({"recorded": 0.0}, "shop 0 4.8"),
    ],
)
def test_a_loose_bound_is_marked_and_the_mark_is_explained(changes: dict[str, Any], row: str) -> None:
    text = shown(replace(SHOP, **changes))
    assert row in text
    assert ("≤ marks a bound that holds but is loose" in text) is ("≤" in row)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"later": 2}, "ok, 2 unanswered"),
        ({"problems": ("a hash is another",), "unknown": ("no receipt",), "budget": math.inf}, "FAILED"),
        ({"unknown": ("no receipt",)}, "cannot tell"),
        ({"unknown": ("no receipt",), "budget": math.inf}, "cannot tell, privacy off"),
        ({"budget": math.inf, "later": 1}, "ok, privacy off"),
    ],
)
def test_what_a_verdict_is_called(changes: dict[str, Any], verdict: str) -> None:
    audit = replace(SHOP, **changes)
    text, private = shown(audit), "budget" not in changes
    assert f"{'8' if private else '∞'} 1e-05 {verdict} shop:" in text.replace("└", "").replace("─", "")
    assert ("Privacy was OFF on some platform" in text) is not private


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": SIGNED - 1}, ""),
        ({"version": SIGNED}, "; 0 answers named"),
        ({"version": SIGNED - 1, "released": 3}, "; 3 answers named"),
        ({"version": SIGNED, "released": 18, "unreleased": 2}, "; 18 answers named, 2 charges without one"),
        (
            {"version": SIGNED, "released": 18, "rowless": 4},
            "; 18 answers named, 4 answers that no row took part in, as it states",
        ),
    ],
)
def test_answers_are_counted_where_the_ledger_names_them(changes: dict[str, Any], said: str) -> None:
    assert f"201 mechanism steps in all{said} Verdict" in shown(replace(SHOP, **changes))


@pytest.mark.parametrize(("checked", "heads"), [(1, "1 head from"), (2, "2 heads from")])
def test_up_to_which_line_somebody_outside_vouches(checked: int, heads: str) -> None:
    text = shown(replace(SHOP, checked=checked, vouched=0, lines=7, voucher="a receipt", lacks=("its lines are not signed",)))
    assert f"shop: checked against {heads} outside, up to line 1 of 8 (a receipt); lines that were cut off" in text
    assert "shop: its lines are not signed" in text and "checked against" not in shown(SHOP)


def test_a_person_on_all_platforms_has_figures_of_their_own() -> None:
    everywhere = Everywhere(platforms=2, delta=2e-5, opacus=spent(7.25), dp_accounting=spent(7.125), basic=9.0)
    text = shown(SHOP, replace(SHOP, platform="video"), everywhere=everywhere, notes=("one is a copy",), general=("and more",))
    least = f"{everywhere.epsilon:.4f}".rstrip("0")
    assert f"A person on all 2 platforms: ε ≤ {least} at δ = 2e-05 (opacus 7.25, dp-accounting 7.125, sum of" in text
    assert "platforms' 9)." in text and "one is a copy" in text and "✗ and more" in text and "Verdict: unsound" in text


def test_privacy_that_is_off_on_one_of_several_platforms_is_said() -> None:
    off, unread = replace(SHOP, platform="video", budget=math.inf), PlatformAudit(file="x.jsonl", platform="x")
    for platforms in ((SHOP, off), (off, SHOP), (unread, off)):
        assert "Privacy was OFF on some platform" in shown(*platforms)
    assert "OFF" not in shown(SHOP, unread)
