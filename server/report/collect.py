"""From ledgers, evidence and a run's files to the report: every epsilon comes from the audit, never from a file's own word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.registry.run_facts import unpromised
from server.report.answer_fields import FIELDS
from server.report.conclusion import conclude, usefulness
from server.report.participants import answers_of, first_count, participants, platforms_in, quality
from server.report.privacy_promise import KEPT, ONE_USER, WHAT, privacy_promise
from server.report.report_model import (
    MOST_ROWS,
    AnswerField,
    AttackResult,
    AttackView,
    BudgetLine,
    PersonEverywhere,
    PromiseStanding,
    RecordCheck,
    ReleasedSum,
    RunReport,
    SubjectKind,
    bounded_text,
)
from server.report.spent_history import MOST_POINTS, HistoryTaker, LedgerStory, ledger_stories
from server.report.subject import ReportSubject, SubjectFiles
from shared.base.version import VERSION
from shared.ledger.audit import AuditReport, AuditVerdict, PlatformAudit, audit_ledgers
from shared.ledger.evidence import LedgerEvidence
from shared.ledger.format import SIGNED, now
from shared.ledger.summary import LedgerSummary
from shared.privacy.releases import Release
from shared.protocol.quality import NDCG

SIMULATED = "simulation-"
"""What the name of a simulation begins with (`simulations/run_folder.py`)."""
_NO_LEDGER = "the platforms' ledgers are not here: give them, and the page says whether they hold"


@dataclass(frozen=True, kw_only=True)
class ReportMaterial:
    """What a report is made from.

    Args:
        ledgers: To be audited; may be none of a coordinator's run.
        evidence: What they are held against.
    """

    subject: ReportSubject
    files: SubjectFiles
    ledgers: Sequence[Path]
    evidence: LedgerEvidence


def collect_report(material: ReportMaterial) -> RunReport:
    """The report, with every ledger audited anew."""
    subject, files = material.subject, material.files
    audit, stories = _audited(material)
    summaries = [one.summary for one in stories]
    answers = answers_of(material.evidence)
    names = platforms_in(files, (summary.header.platform for summary in summaries))
    # The coordinator's receipts of a run are of all its platforms; a report of one platform counts its own.
    answers = Counter({of: count for of, count in answers.items() if of[0] in names})
    attack, gaps = _attack(files)
    budgets = _budgets(audit, files)
    measured = quality(files, names, NDCG)
    distributed = _distributed(files.settings, summaries)
    rows = participants(files, names, answers)
    runs = tuple(dict.fromkeys([*([files.run] if files.run else []), *(r for s in summaries for r in s.runs())]))[:MOST_ROWS]
    standing = _standing(files, budgets, runs)
    return RunReport(
        fedfuse=VERSION,
        made=now(),
        kind=subject.kind,
        name=subject.name,
        runs=runs,
        finished=_finished(subject, files),
        rounds=first_count(files.metrics.get("rounds"), files.facts.rounds if files.facts else None, files.state.get("round")),
        stopped=bounded_text(files.facts.stopped if files.facts and files.facts.stopped else ""),
        strategy=bounded_text(files.settings.get("strategy", ""), most=60),
        verdict=conclude(audit, standing=standing, budgets=budgets, attack=attack, quality=measured, kind=subject.kind),
        budgets=budgets,
        everywhere=_everywhere(audit),
        history=tuple(one.history for one in stories),
        releases=tuple(_releases(stories, files.settings))[:MOST_ROWS],
        fields=tuple(_fields(answers)),
        participants=rows,
        quality=measured,
        attack=attack,
        records=tuple(_record(one) for one in audit.platforms) if audit else (),
        promise=privacy_promise(
            standing=standing,
            distributed=distributed,
            colluders=first_count(files.settings.get("secure.colluders")),
            units=sum(row.users or 0 for row in rows) or None,
            utility=usefulness(measured),
            known=bool(files.settings),
        ),
        settings={bounded_text(key, most=80): _setting(value) for key, value in list(files.settings.items())[:MOST_ROWS]},
        gaps=tuple(bounded_text(gap) for gap in (*files.gaps, *gaps, *([] if audit else [_NO_LEDGER]))),
        notes=tuple(bounded_text(note) for note in (audit.notes if audit else material.evidence.notes)),
    )


def _audited(material: ReportMaterial) -> tuple[AuditReport | None, list[LedgerStory]]:
    """The audit, and what each ledger tells besides; a ledger is read once for both."""
    if not material.ledgers:
        return None, []
    takers = [HistoryTaker() for _ in material.ledgers]
    watch = [taker.take for taker in takers]
    audit = audit_ledgers(material.ledgers, name=material.subject.name, evidence=material.evidence, watch=watch)
    return audit, ledger_stories(audit, takers)[:MOST_ROWS]


def guess_bound(epsilon: float, delta: float) -> float:
    """Greatest chance to guess rightly whether one person is among the users, where a coin is right half the time.

    Kairouz, Oh and Viswanath 2015, "The composition theorem for differential privacy", after Theorem 2.1: the true-positive rate
    less the false-positive rate is at most (e^epsilon - 1 + 2 delta) / (e^epsilon + 1), and half of one more than that is this.

    >>> guess_bound(0.0, 0.0), round(guess_bound(1.0, 0.0), 4), guess_bound(math.inf, 0.0)
    (0.5, 0.7311, 1.0)
    """
    if epsilon > 700:
        return 1.0
    return min(1.0, (math.exp(epsilon) + delta) / (math.exp(epsilon) + 1.0))


def spent_of(platform: PlatformAudit) -> float | None:
    """What a ledger charges against its budget; what its charges give by the better of two accountants where that is more."""
    if platform.opacus is None or platform.dp_accounting is None:
        return None
    if not platform.private and platform.entries:
        return math.inf
    return max(platform.recorded or 0.0, min(platform.opacus.epsilon, platform.dp_accounting.epsilon))


def _budgets(audit: AuditReport | None, files: SubjectFiles) -> tuple[BudgetLine, ...]:
    found = [
        _line(one.platform, spent_of(one), one.budget, one.delta, recomputed=spent_of(one) is not None, verdict=one.verdict)
        for one in (audit.platforms if audit else ())
    ]
    known = {one.platform for one in found}
    for fact in files.facts.platforms if files.facts else ():
        if fact.name not in known:
            found.append(_line(fact.name, fact.epsilon, fact.budget, fact.delta, recomputed=False, verdict=AuditVerdict.UNKNOWN))
            known.add(fact.name)
    lines = files.state.get("platforms")
    for name, line in lines.items() if isinstance(lines, dict) else ():
        if name not in known and isinstance(line, dict):
            spent, budget, delta = (_amount(line.get(key)) for key in ("epsilon", "budget", "delta"))
            found.append(_line(name, spent, budget, delta, recomputed=False, verdict=AuditVerdict.UNKNOWN))
    return tuple(sorted(found, key=lambda one: one.platform)[:MOST_ROWS])


def _line(
    name: str, spent: float | None, budget: float | None, delta: float | None, *, recomputed: bool, verdict: AuditVerdict
) -> BudgetLine:
    delta = delta if delta is not None and delta <= 1 else None
    return BudgetLine(
        platform=bounded_text(name, most=63),
        spent=spent,
        budget=budget,
        delta=delta,
        recomputed=recomputed,
        guess=None if spent is None or delta is None else guess_bound(spent, delta),
        verdict=str(verdict),
    )


def _everywhere(audit: AuditReport | None) -> PersonEverywhere | None:
    if audit is None or not audit.ok or audit.everywhere is None:
        return None  # of ledgers that do not hold, nothing is added up
    one = audit.everywhere
    return PersonEverywhere(platforms=one.platforms, epsilon=one.epsilon, delta=one.delta)


def _releases(stories: Iterable[LedgerStory], settings: Mapping[str, Any]) -> Iterable[ReleasedSum]:
    clip = settings.get("training.clip")
    for story in stories:
        named = story.summary.header.version >= SIGNED
        for release in sorted(story.summary.releases(), key=lambda one: (str(one.kind), -one.steps)):
            answers = story.left[replace(release, steps=1)] if named else None
            yield _released(story.summary.header.platform, release, answers, clip)


def _released(platform: str, release: Release, answers: int | None, clip: Any) -> ReleasedSum:
    kind, integers = str(release.kind), release.integers
    one_user = ONE_USER[kind]
    if kind == "train" and isinstance(clip, int | float) and not isinstance(clip, bool):
        one_user += f" of {clip:g}"
    if release.group_size > 1:
        one_user += f", in each of up to {release.group_size} examples that the user is in"
    return ReleasedSum(
        platform=platform,
        kind=kind,
        what=WHAT[kind] + (KEPT if kind == "popularity" and answers == 0 else ""),
        times=release.steps,
        answers=answers,
        one_user=one_user,
        group=release.group_size,
        noise_multiplier=release.noise_multiplier,
        sample_rate=release.sample_rate,
        numbers=None if integers is None else integers.dimension,
        bytes_at_most=0 if answers == 0 else None if integers is None else 4 * integers.dimension,
        grid=None if integers is None else integers.norm,
    )


def _fields(answers: Mapping[tuple[str, str], int]) -> Iterable[AnswerField]:
    for one in FIELDS:
        counted = sum(count for (_, kind), count in answers.items() if kind in one.messages)
        receipted = any(kind not in ("joined", "secured", "refusal") for kind in one.messages)
        yield AnswerField(
            message=", ".join(one.messages),
            field=one.name,
            what=one.what,
            one_user=one.one_user,
            size=one.size,
            answers=counted if answers and receipted else None,
        )


def _record(one: PlatformAudit) -> RecordCheck:
    spent = [None if found is None else found.epsilon for found in (one.renyi, one.opacus, one.dp_accounting)]
    return RecordCheck(
        file=bounded_text(one.file, most=100),
        platform=bounded_text(one.platform, most=63),
        verdict=str(one.verdict),
        recorded=one.recorded,
        renyi=spent[0],
        prv=spent[1],
        pld=spent[2],
        charges=sum(one.entries.values()),
        answers=one.released,
        unreleased=one.unreleased,
        rowless=one.rowless,
        checked=one.checked,
        lines=one.lines + 1 if one.recorded is not None else 0,
        vouched=None if one.vouched is None else one.vouched + 1,
        identity=one.identity,
        head=one.head,
        problems=tuple(bounded_text(problem) for problem in one.problems),
        unknown=tuple(bounded_text(reason) for reason in (*one.unknown, *one.lacks)),
    )


def _attack(files: SubjectFiles) -> tuple[AttackResult | None, list[str]]:
    """The attack's result; None and a gap where what was left is none."""
    values = files.attack
    if not values:
        return None, []
    try:
        views = tuple(
            AttackView(
                attacker=bounded_text(name, most=80),
                canaries=view["canaries"],
                bound=view["bound"],
                area=view["area"],
                low=view.get("low"),
                roc=tuple(tuple(point) for point in view.get("roc", ())[:MOST_POINTS]),
            )
            for name, view in list(values["views"].items())[:20]
        )
        claim = float(values["claim"])
        return (
            AttackResult(
                release=bounded_text(values["release"], most=40),
                platform=bounded_text(values["platform"], most=63),
                claim=claim,
                delta=values["delta"],
                confidence=values["confidence"],
                refuted=any(view.bound > claim for view in views),
                views=views,
            ),
            [],
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None, ["the attack's result is not as `fedfuse audit attack --json` writes it"]


def _standing(files: SubjectFiles, budgets: Sequence[BudgetLine], runs: Iterable[str]) -> PromiseStanding:
    """Whether users may rely on the runs; where anything says that one was a simulation, they may not."""
    if any(one.budget is not None and math.isinf(one.budget) for one in budgets):
        return PromiseStanding.OFF
    simulated = (
        bool(files.metrics)
        or files.settings.get("simulation") is True
        or files.settings.get("privacy.generator") == "seeded"
        or any(run.startswith(SIMULATED) for run in runs)
        or (files.facts is not None and bool(unpromised(files.facts)))
    )
    return PromiseStanding.SIMULATED if simulated else PromiseStanding.PROMISED


def _distributed(settings: Mapping[str, Any], summaries: Sequence[LedgerSummary]) -> bool | None:
    if "privacy.noise" in settings:
        return bool(settings["privacy.noise"] == "distributed")
    shares = {r.integers.honest for s in summaries for r in s.releases() if r.integers is not None}
    return True if any(honest > 1 for honest in shares) else None


def _finished(subject: ReportSubject, files: SubjectFiles) -> bool | None:
    if files.state:
        ended: object = files.state.get("state")
        return ended == "finished"
    return bool(files.metrics) if subject.kind is SubjectKind.SIMULATION else None


def _amount(value: Any) -> float | None:
    if value == "inf":
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _setting(value: bool | int | float | str) -> bool | int | float | str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return bounded_text(value, most=200) if isinstance(value, str) else value
