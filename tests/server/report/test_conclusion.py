"""The verdict in words: what it rests on, the gravest first, and nothing that the figures do not say."""

from __future__ import annotations

from typing import Any

import pytest

from server.report.conclusion import conclude, usefulness
from server.report.report_model import (
    AttackResult,
    AttackView,
    BudgetLine,
    PlatformQuality,
    PromiseStanding,
    ReportVerdict,
    SubjectKind,
)
from shared.ledger.audit import AuditReport, PlatformAudit


def measured(platform: str = "shop", **over: Any) -> PlatformQuality:
    values: dict[str, Any] = dict.fromkeys(("own", "global_", "fused", "low", "gain", "high", "before", "after"))
    return PlatformQuality(**{**values, "platform": platform, "metric": "ndcg@10", "exact": True, "recommended_by": "", **over})


def budget(platform: str = "shop", *, spent: float | None = 3.0, of: float | None = 8.0, **over: Any) -> BudgetLine:
    values: dict[str, Any] = {"platform": platform, "spent": spent, "budget": of, "delta": 1e-5, "recomputed": True}
    return BudgetLine(**{**values, "guess": None, "verdict": "sound", **over})


def attack(bound: float, *, claim: float = 3.0, refuted: bool | None = None) -> AttackResult:
    view = AttackView(attacker="white box", canaries=9, bound=bound, area=0.5, low=None, roc=())
    lower = view.model_copy(update={"bound": bound / 2})
    said = bound > claim if refuted is None else refuted
    return AttackResult(
        release="updates", platform="shop", claim=claim, delta=1e-5, confidence=0.95, refuted=said, views=(lower, view)
    )


def ledger(platform: str = "shop", **over: Any) -> PlatformAudit:
    values: dict[str, Any] = {"recorded": 3.0, "budget": 8.0, "lines": 5, "vouched": 5, "checked": 2}
    return PlatformAudit(file=f"{platform}.jsonl", platform=platform, **{**values, **over})


def concluded(audit: AuditReport | None = None, **over: Any) -> ReportVerdict:
    values: dict[str, Any] = {"standing": PromiseStanding.PROMISED, "budgets": (), "attack": None, "quality": ()}
    return conclude(audit, **{**values, "kind": SubjectKind.COORDINATOR, **over})


def audited(*platforms: PlatformAudit, **over: Any) -> AuditReport:
    return AuditReport(run="spring", platforms=platforms, **over)


def test_who_gains_is_counted_by_the_whole_interval() -> None:
    """An interval that touches zero shows nothing, on either side."""
    intervals = {"up": (0.01, 0.3), "touches": (0.0, 0.3), "around": (-0.1, 0.1), "below": (-0.3, 0.0), "down": (-0.3, -0.01)}
    compared = [measured(name, own=0.5, low=low, high=high) for name, (low, high) in intervals.items()]
    said = "1 of 5 platforms gain by joining beyond doubt (95 % intervals)"
    assert usefulness(compared) == f"{said}; 1 would lose by the fused model, and can keep their own."
    assert usefulness(compared[:4]) == said.replace("5", "4", 1) + "."
    # Those without a model of their own are not counted, and one without an interval gains nothing.
    assert usefulness([*compared[:4], measured(before=0.1)]) == said.replace("5", "4", 1) + "."
    assert usefulness([measured(own=0.5)]).startswith("0 of 1 platforms gain")


@pytest.mark.parametrize(("exact", "said"), [((True, True), "exactly"), ((True, False), "noise"), ((False, False), "noise")])
def test_figures_of_which_any_has_noise_are_said_to_have_noise(exact: tuple[bool, bool], said: str) -> None:
    words = usefulness([measured(after=0.1, exact=one) for one in exact])
    assert words.startswith("The global model alone was measured") and said in words


def test_of_many_problems_the_first_are_named_and_the_rest_counted() -> None:
    for count in (1, 8, 9, 30):
        problems = tuple(f"problem {number}." for number in range(count))
        found = concluded(audited(ledger(problems=problems)))
        named = [reason for reason in found.reasons if "problem " in reason]
        assert named == [f"shop.jsonl: {one}" for one in problems[:8]] and found.exit_code == 1
        more = [reason for reason in found.reasons if "more problems" in reason]
        assert more == ([f"... and {count - 8} more problems, below."] if count > 8 else [])


@pytest.mark.parametrize(
    ("platforms", "expected", "absent"),
    [
        ([ledger()], ["1 ledger recomputed", "2 heads that somebody else kept, up to the last line of each"], ["could not"]),
        ([ledger(), ledger("video", checked=1)], ["2 ledgers recomputed", "against 3 heads", "last line of each"], ["nobody"]),
        ([ledger(), ledger("video", vouched=4)], ["last line of 1 of 2 ledgers", "cut off there, nobody"], ["each ledger"]),
        ([ledger(lines=0, vouched=None, checked=0)], ["against 0 heads", "each ledger"], ["cut off"]),
        ([ledger(lines=3, vouched=None, checked=0)], ["last line of 0 of 1 ledger", "cut off"], ["each ledger"]),
        ([ledger(checked=1)], ["against 1 head that"], []),
        ([ledger(), ledger("video", recorded=None, problems=("torn",))], ["1 of 2 ledgers could not"], ["Checked", "1 ledger r"]),
        ([ledger(), ledger("video", unknown=("no head",))], ["vouches for video:", "2 ledgers recomputed"], ["Checked", "..."]),
        ([ledger(recorded=None, unknown=("torn",))], ["1 of 1 ledgers could not"], ["vouches", "recomputed", "Checked"]),
        ([ledger(problems=("bent",), unknown=("no head",))], ["shop.jsonl: bent"], ["vouches", "recomputed", "Checked"]),
    ],
)  # fmt: skip
def test_what_is_said_of_the_ledgers(platforms: list[PlatformAudit], expected: list[str], absent: list[str]) -> None:
    said = "\n".join(concluded(audited(*platforms)).reasons)
    assert [words for words in expected if words not in said] == [] and [words for words in absent if words in said] == [], said


def test_who_vouches_in_a_simulation_is_the_run_itself() -> None:
    for kind in SubjectKind:
        said = "\n".join(concluded(audited(ledger()), kind=kind).reasons)
        assert ("the run itself kept" in said) == (kind is SubjectKind.SIMULATION)


@pytest.mark.parametrize("count", [8, 9])
def test_of_many_platforms_some_are_named(count: int) -> None:
    names = [f"p{number}" for number in range(count)]
    (said,) = [
        one for one in concluded(audited(*(ledger(name, unknown=("no head",)) for name in names))).reasons if "vouches" in one
    ]
    assert f"for {', '.join(names[:8])}{' ...' if count > 8 else ''}:" in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([budget(spent=8.0)], "1 of 1 platforms stayed within their budget."),
        ([budget(spent=8.001), budget("video")], "Spent more than its budget: shop."),
        ([budget(spent=None), budget("video")], "1 of 2 platforms stayed within their budget."),
        ([budget(of=None), budget("video")], "1 of 2 platforms stayed within their budget."),
        ([budget(verdict="unsound"), budget("video")], "1 of 2 platforms stayed within their budget."),
        ([budget(recomputed=False), budget("video")], "2 of 2 platforms stayed within their budget, as the platforms say."),
        ([budget(), budget()], "2 of 2 budgets are kept, each ledger taken by itself."),
    ],
)
def test_what_is_said_of_budgets(lines: list[BudgetLine], said: str) -> None:
    assert [one for one in concluded(budgets=lines).reasons if "budget" in one] == [said]


@pytest.mark.parametrize("lines", [[], [budget(spent=None)], [budget(verdict="unsound")]])
def test_nothing_is_said_of_budgets_that_nobody_knows(lines: list[BudgetLine]) -> None:
    assert not any("budget" in one for one in concluded(budgets=lines).reasons)


def test_an_attack_that_refutes_is_said_first_and_one_that_does_not_is_said_late() -> None:
    sound = audited(ledger())
    refuted = concluded(sound, attack=attack(4.0), budgets=[budget()])
    assert refuted.reasons[0] == "REFUTED by attack: epsilon is at least 4, and 3 is claimed." and refuted.exit_code == 1
    held = concluded(sound, attack=attack(2.0), budgets=[budget()], quality=[measured(own=0.5)])
    assert "at least 2; 3 is claimed" in held.reasons[-2] and held.reasons[-1].startswith("0 of 1") and held.exit_code == 0
    assert (
        sum("attack" in reason.lower() for reason in refuted.reasons) == 1 == sum("attack" in one.lower() for one in held.reasons)
    )


def test_without_an_audit_nobody_can_tell() -> None:
    found = concluded()
    assert (found.verdict, found.exit_code) == ("cannot tell", 2) and found.reasons == (
        "The ledgers are at the platforms; the figures here are what the platforms said in their answers.",
    )
