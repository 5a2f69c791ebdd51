"""What a report comes to, in words that need no training in statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from server.report.report_model import (
    AttackResult,
    BudgetLine,
    PlatformQuality,
    PromiseStanding,
    ReportVerdict,
    SubjectKind,
    bounded_text,
)
from shared.ledger.audit import AuditReport, AuditVerdict

_SHOWN = 8
_HEADLINES = {
    AuditVerdict.SOUND: (
        "The records hold, as far as somebody else vouches for them: nothing in them was changed or left out, "
        "and no platform spent more than it was allowed."
    ),
    AuditVerdict.UNSOUND: "The records do not hold: something below contradicts what was promised.",
    AuditVerdict.UNKNOWN: "Nobody can tell from what is here whether the records are whole.",
}
_EXIT: dict[AuditVerdict, Literal[0, 1, 2]] = {AuditVerdict.SOUND: 0, AuditVerdict.UNSOUND: 1, AuditVerdict.UNKNOWN: 2}


def conclude(
    audit: AuditReport | None,
    *,
    standing: PromiseStanding,
    budgets: Sequence[BudgetLine],
    attack: AttackResult | None,
    quality: Sequence[PlatformQuality],
    kind: SubjectKind,
) -> ReportVerdict:
    """The verdict: the audit's, or unsound where an attack proves more than is claimed."""
    verdict = audit.verdict if audit is not None else AuditVerdict.UNKNOWN
    if attack is not None and attack.refuted:
        verdict = AuditVerdict.UNSOUND
    reasons = [
        *_attack_reason(attack, refuted=True),
        *_problems(audit),
        *_records(audit, kind),
        *_budget_reason(budgets),
        *_attack_reason(attack, refuted=False),
        *([usefulness(quality)] if quality else []),
    ]
    return ReportVerdict(
        verdict=str(verdict),
        exit_code=_EXIT[verdict],
        standing=standing,
        headline=_HEADLINES[verdict],
        reasons=tuple(bounded_text(reason) for reason in reasons),
    )


def usefulness(quality: Sequence[PlatformQuality]) -> str:
    """Who gained, counted by 95 % intervals.

    >>> usefulness([])
    'Not measured.'
    """
    compared = [one for one in quality if one.own is not None]
    if not compared:
        if not quality:
            return "Not measured."
        how = "exactly" if all(one.exact for one in quality) else "with noise, charged, so that chance may be in the figures"
        return (
            f"The global model alone was measured, {how}; whether joining pays is for each platform to see (`fedfuse evaluate`)."
        )
    gains = sum(one.low is not None and one.low > 0 for one in compared)
    loses = sum(one.high is not None and one.high < 0 for one in compared)
    said = [f"{gains} of {len(compared)} platforms gain by joining beyond doubt (95 % intervals)"]
    if loses:
        said.append(f"{loses} would lose by the fused model, and can keep their own")
    return "; ".join(said) + "."


def _problems(audit: AuditReport | None) -> Iterable[str]:
    problems = audit.problems if audit is not None else []
    yield from problems[:_SHOWN]
    if len(problems) > _SHOWN:
        yield f"... and {len(problems) - _SHOWN} more problems, below."


def _records(audit: AuditReport | None, kind: SubjectKind) -> Iterable[str]:
    if audit is None:
        yield "The ledgers are at the platforms; the figures here are what the platforms said in their answers."
        return
    readable = [one for one in audit.platforms if one.recorded is not None]
    count = f"{len(readable)} ledger{'s' if len(readable) != 1 else ''}"
    if audit.ok and readable:
        yield f"{count} recomputed by three accountants of two libraries; every chain of lines is unbroken."
    unread = len(audit.platforms) - len(readable)
    if unread:
        yield f"{unread} of {len(audit.platforms)} ledgers could not be read as a whole."
    missing = [one.platform for one in audit.platforms if one.verdict is AuditVerdict.UNKNOWN and one.recorded is not None]
    if missing:
        named = ", ".join(missing[:_SHOWN]) + (" ..." if len(missing) > _SHOWN else "")
        yield f"Nobody outside vouches for {named}: a cut end would not be seen. Give the coordinator's receipts."
    elif audit.ok and readable:
        who = "the run itself" if kind is SubjectKind.SIMULATION else "somebody else"
        heads = sum(one.checked for one in readable)
        # Of a platform that charged nothing there is no head, and no line that one could name.
        full = sum(one.vouched == one.lines or not (one.lines or one.checked) for one in readable)
        reach = "the last line of each ledger" if full == len(readable) else f"the last line of {full} of {count}"
        yield f"Checked against {heads} head{'s' if heads != 1 else ''} that {who} kept, up to {reach}."
        if full < len(readable):
            yield "For what comes after the last such head, or was cut off there, nobody outside vouches."


def _budget_reason(budgets: Sequence[BudgetLine]) -> Iterable[str]:
    # What a ledger that does not hold says of its spending is not worth repeating.
    known = [one for one in budgets if one.spent is not None and one.budget is not None and one.verdict != "unsound"]
    over = [one.platform for one in budgets if one.spent is not None and one.budget is not None and one.spent > one.budget]
    if over:
        yield f"Spent more than its budget: {', '.join(over[:_SHOWN])}."
    elif known:
        said = "" if all(one.recomputed for one in known) else ", as the platforms say"
        # A platform that came back has several ledgers, and what they come to together is the audit's to say.
        several = len({one.platform for one in budgets}) < len(budgets)
        what = "budgets are kept, each ledger taken by itself" if several else "platforms stayed within their budget"
        yield f"{len(known)} of {len(budgets)} {what}{said}."


def _attack_reason(attack: AttackResult | None, *, refuted: bool) -> Iterable[str]:
    if attack is None or attack.refuted != refuted:
        return
    best = max((view.bound for view in attack.views), default=0.0)
    if refuted:
        yield f"REFUTED by attack: epsilon is at least {best:.3g}, and {attack.claim:.3g} is claimed."
    else:
        proved = f"epsilon of at least {best:.3g}" if best > 0 else "nothing"
        yield f"An attack on planted users proved {proved}; {attack.claim:.3g} is claimed. Not refuted, which confirms nothing."
