"""Auditing ledgers: are they whole, do they say what their entries cost, and does anybody outside bear that out?

Every epsilon is computed anew from the entries alone, by three accountants of two libraries. A ledger alone cannot show that its
end is missing: without the coordinator's receipts, a published model or a head that somebody wrote down, the verdict is that
nobody can tell.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from shared.base.errors import FedfuseError, InputError
from shared.ledger.checks import (
    ClaimChecks,
    arithmetic_problems,
    belongs_to,
    order_problems,
    prefix_problems,
    witness_problems,
)
from shared.ledger.evidence import LedgerEvidence, folder_evidence
from shared.ledger.format import READABLE, SIGNED, Line
from shared.ledger.reading import UnreadableLedger
from shared.ledger.summary import LedgerSummary, summarise_ledger
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, RENYI
from shared.privacy.releases import Release
from shared.privacy.spent import Spent

UNSEEN = "no receipt checked: a removed tail would not be seen"


class AuditVerdict(StrEnum):
    """What an audit comes to."""

    SOUND = "sound"
    UNSOUND = "unsound"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, kw_only=True)
class PlatformAudit:
    """One ledger, read, recomputed and compared.

    Args:
        file: Name of the ledger file.
        platform: From the header; the file's stem where the ledger cannot be read.
        identity: The key that signs it, in hex; empty where none does.
        version: Of its format; 0 where it cannot be read.
        entries: Kind of release -> number of charges.
        releases: Mechanism steps charged, over all entries.
        released: Charges whose answer has a release record.
        unreleased: Signed charges without one: their answer never left, or stays on the platform.
        rowless: Release records of answers that, as the platform states, no row took part in.
        budget, delta, recorded: What the ledger says; None where it cannot be read.
        method: Which accountant recorded the last epsilon.
        renyi, opacus, dp_accounting: Recomputed from the entries alone, by Opacus' RDP, its PRV where that reaches, and
            dp-accounting's PLD.
        head: Hash of the last line.
        lines: After the header.
        checked: How many heads from outside it was checked against.
        receipt: The last of them in its chain; empty if none.
        vouched: Number of its line, 0 for the header; None if none. What is after it, or was cut off there, nobody vouches for.
        voucher: Who holds it, in words.
        later: Charges after that: their answer did not arrive. Legitimate.
        lacks: What its version does not let anybody check.
        problems: What does not hold, in words.
        unknown: Why it cannot be judged, in words.
    """

    file: str
    platform: str
    identity: str = ""
    version: int = 0
    entries: Mapping[str, int] = field(default_factory=dict)
    releases: int = 0
    released: int = 0
    unreleased: int = 0
    rowless: int = 0
    budget: float | None = None
    delta: float | None = None
    recorded: float | None = None
    method: str = ""
    renyi: Spent | None = None
    opacus: Spent | None = None
    dp_accounting: Spent | None = None
    head: str = ""
    lines: int = 0
    checked: int = 0
    receipt: str = ""
    vouched: int | None = None
    voucher: str = ""
    later: int = 0
    lacks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when everything that could be checked holds."""
        return not self.problems

    @property
    def verdict(self) -> AuditVerdict:
        """Sound only where somebody outside bears the ledger out."""
        return AuditVerdict.UNSOUND if self.problems else AuditVerdict.UNKNOWN if self.unknown else AuditVerdict.SOUND

    @property
    def private(self) -> bool:
        """False when privacy was off."""
        return self.budget is not None and math.isfinite(self.budget)


@dataclass(frozen=True, kw_only=True)
class Everywhere:
    """What a person who is a user of every platform has at most spent, at the sum of the deltas.

    Args:
        delta: Sum of the ledgers' deltas.
        opacus, dp_accounting: All releases of all ledgers composed.
        basic: Sum of the ledgers' recomputed epsilons (basic composition: Dwork and Roth 2014, Theorem 3.16).
    """

    platforms: int
    delta: float
    opacus: Spent
    dp_accounting: Spent
    basic: float

    @property
    def epsilon(self) -> float:
        """The smallest of the bounds; each of them holds."""
        return min(self.opacus.epsilon, self.dp_accounting.epsilon, self.basic)


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The whole audit.

    Args:
        everywhere: None for one ledger, whose figures are its own, and where some ledger cannot be read.
        summaries: Of each platform's ledger, in the order of `platforms`; None where it cannot be read. Not in the JSON.
    """

    run: str
    platforms: tuple[PlatformAudit, ...]
    everywhere: Everywhere | None = None
    general: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    summaries: tuple[LedgerSummary | None, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return not self.problems

    @property
    def verdict(self) -> AuditVerdict:
        """Of all ledgers together."""
        found = {platform.verdict for platform in self.platforms}
        if self.problems:
            return AuditVerdict.UNSOUND
        return AuditVerdict.UNKNOWN if AuditVerdict.UNKNOWN in found or not found else AuditVerdict.SOUND

    @property
    def problems(self) -> list[str]:
        """Everything that does not hold, each with its ledger."""
        return [*self.general, *(f"{p.file}: {problem}" for p in self.platforms for problem in p.problems)]

    def to_json(self) -> str:
        """The report as JSON text; an infinite epsilon is the word "inf"."""
        values = {**asdict(replace(self, summaries=())), "ok": self.ok, "problems": self.problems, "verdict": str(self.verdict)}
        for shown, platform in zip(values["platforms"], self.platforms, strict=True):
            shown["ok"], shown["verdict"] = platform.ok, str(platform.verdict)
        if self.everywhere is not None:
            values["everywhere"]["epsilon"] = self.everywhere.epsilon
        del values["general"], values["summaries"]
        return json.dumps(_finite(values), indent=2, sort_keys=True, allow_nan=False)


def audit_run(run: Path, evidence: LedgerEvidence | None = None) -> AuditReport:
    """The audit of every ledger under `run`/ledger, against what the run's folder holds and against `evidence`.

    Returns:
        As `audit_ledgers`.

    Raises:
        InputError: there is no ledger, or metrics.json or receipts.jsonl cannot be read.

    | given | result |
    |---|---|
    | a folder without a ledger | `InputError` |
    | no evidence in the folder, and none given | cannot tell |
    """
    paths = sorted((run / "ledger").glob("*.jsonl"))
    if not paths:
        raise InputError(
            "no ledger found",
            where=str(run / "ledger"),
            do="name a run's folder, a platform's folder, or a ledger",
        )
    return audit_ledgers(paths, name=str(run), evidence=folder_evidence(run).plus(evidence or LedgerEvidence()))


def audit_ledgers(
    paths: Sequence[Path], *, name: str, evidence: LedgerEvidence, watch: Sequence[Callable[[Line], None]] = ()
) -> AuditReport:
    """The audit of ledgers against what somebody outside knows of them. Each is read once.

    Args:
        name: What is audited, for a person.
        watch: For each ledger, called with every line after its header; none at all by default.

    Returns:
        A verdict (sound, unsound, cannot tell) and the problems for each ledger and for all together, with epsilon by three
        accountants; `to_json()` has all of it.

    | given | result |
    |---|---|
    | a ledger, and no evidence | cannot tell: a cut end would not be seen |
    | a file that is no ledger, or not there | cannot tell |
    | an altered line | unsound |
    """
    watching = watch or [_nothing] * len(paths)
    read = [_read(path, evidence, watch=told) for path, told in zip(paths, watching, strict=True)]
    summaries = tuple(one.summary for one in read)
    readable = [summary for summary in summaries if summary is not None]
    platforms = tuple(_judged(one, evidence, among=readable, alone=len(paths) == 1) for one in read)
    problems, notes = _several(platforms, summaries)
    return AuditReport(
        run=name,
        platforms=platforms,
        everywhere=compose(readable) if 1 < len(readable) == len(paths) else None,
        general=(*evidence.problems, *problems, *_across(platforms, evidence), *_homeless(readable, evidence, of=len(paths))),
        notes=(*evidence.notes, *notes, *_elsewhere(platforms, evidence)),
        summaries=summaries,
    )


def _nothing(line: Line) -> None:
    """For a ledger whose lines nobody else looks at."""


@dataclass(frozen=True, kw_only=True)
class _ReadLedger:
    """One ledger, read.

    Args:
        failed: What it comes to where it cannot be read.
    """

    file: str
    checks: ClaimChecks
    summary: LedgerSummary | None = None
    failed: PlatformAudit | None = None


def _read(path: Path, evidence: LedgerEvidence, *, watch: Callable[[Line], None]) -> _ReadLedger:
    nobody, checks = PlatformAudit(file=path.name, platform=path.stem), ClaimChecks(evidence.claims)

    def tell(line: Line) -> None:
        checks.take(line)
        watch(line)

    try:
        # Its first line names the platform.
        summary = summarise_ledger(path, wanted={one.head: one for one in evidence.witnesses}, tell=tell)
    except UnreadableLedger as error:
        return _ReadLedger(file=path.name, checks=checks, failed=replace(nobody, unknown=(f"{error.found} ({error.where})",)))
    except FedfuseError as error:
        return _ReadLedger(file=path.name, checks=checks, failed=replace(nobody, problems=(f"{error.found} ({error.where})",)))
    return _ReadLedger(file=path.name, checks=checks, summary=summary)


def _judged(read: _ReadLedger, evidence: LedgerEvidence, *, among: Sequence[LedgerSummary], alone: bool) -> PlatformAudit:
    """One ledger against its own entries and against the evidence.

    Args:
        among: All that could be read, this one too: a platform that came back with another identity has two, and what somebody
            outside holds of the one is not missing in the other.
        alone: Whether heads that were given without a platform's name are of this one.
    """
    if read.failed is not None:
        return read.failed
    summary = read.summary
    assert summary is not None
    header = summary.header
    others = [one for one in among if one.header.platform == header.platform and one.identity not in (summary.identity, b"")]
    witnesses = [
        one
        for one in evidence.of(header.platform, alone=alone, holds=summary.named)
        if one.head in summary.named or not any(belongs_to(one, other) for other in others)
    ]
    releases, delta = summary.releases(), header.delta
    renyi, opacus, pld = (one.epsilon(releases, delta) for one in (RENYI, OPACUS, DP_ACCOUNTING))
    problems = [
        *arithmetic_problems(summary, opacus, pld),
        *order_problems(renyi, opacus, pld),
        *read.checks.problems(header.platform, elsewhere={run for other in others for run in other.runs()}),
        *prefix_problems(summary),
        *witness_problems(summary, witnesses),
    ]
    outside = [one for one in witnesses if not one.own]
    known = [(summary.named[one.head], one) for one in outside if one.head in summary.named]
    latest, voucher = max(known, key=lambda found: found[0].line, default=(None, None))
    # The receipts of the whole run are here, none is of this platform, and it charges nothing: no end can be missing.
    silent = evidence.complete and bool(evidence.witnesses) and not summary.lines
    return PlatformAudit(
        file=read.file,
        platform=header.platform,
        identity=summary.identity.hex(),
        version=header.version,
        entries=dict(sorted(summary.kinds.items())),
        releases=sum(release.steps for release in releases),
        released=summary.released,
        unreleased=summary.unreleased,
        rowless=summary.rowless,
        budget=header.budget,
        delta=delta,
        recorded=summary.epsilon,
        method=str(summary.last.accountant) if summary.last else "",
        renyi=renyi,
        opacus=opacus,
        dp_accounting=pld,
        head=summary.head,
        lines=summary.lines,
        checked=len(outside),
        receipt=voucher.head if voucher else "",
        vouched=latest.line if latest else None,
        voucher=voucher.called if voucher else "",
        later=summary.charged - latest.charges if latest is not None else 0,
        lacks=tuple(_lacks(summary)),
        problems=tuple(problems),
        unknown=() if outside or silent else (UNSEEN,),
    )


def compose(ledgers: Sequence[LedgerSummary]) -> Everywhere:
    """What one person on all of these platforms has at most spent."""
    releases = [release for ledger in ledgers for release in ledger.releases()]
    # A sum of deltas of 1 or more promises nothing; the largest float below 1 keeps the accountants' range.
    delta = min(sum(ledger.header.delta for ledger in ledgers), math.nextafter(1.0, 0.0))
    alone = [_spent(ledger.releases(), ledger.header.delta) for ledger in ledgers]
    off = any(not ledger.private and ledger.charged for ledger in ledgers)
    nothing = Spent(epsilon=math.inf, accountant=OPACUS.epsilon([], delta).accountant)
    return Everywhere(
        platforms=len(ledgers),
        delta=delta,
        opacus=nothing if off else OPACUS.epsilon(releases, delta),
        dp_accounting=nothing if off else DP_ACCOUNTING.epsilon(releases, delta),
        basic=math.inf if off else sum(alone),
    )


def _lacks(ledger: LedgerSummary) -> Iterable[str]:
    version = ledger.header.version
    if version >= SIGNED:
        return
    what = {1: "unsigned, and name neither their question nor what left", 2: "unsigned, and do not name what left"}[version]
    assert version in READABLE
    yield f"its first {ledger.unsigned + 1} lines are of version {version}: {what}"


def _several(platforms: Sequence[PlatformAudit], summaries: Sequence[LedgerSummary | None]) -> tuple[list[str], list[str]]:
    """What is wrong, and what is worth knowing, of platforms with more than one ledger: their users have spent them all."""
    problems, notes = [], []
    for name, count in sorted(Counter(platform.platform for platform in platforms).items()):
        of = [summary for one, summary in zip(platforms, summaries, strict=True) if one.platform == name and summary is not None]
        if count == 1:
            continue
        if len(of) < count:
            problems.append(f"platform {name} has {count} ledgers here, of which {count - len(of)} cannot be read or do not hold")
            continue
        identities = {ledger.identity for ledger in of}
        delta, budget = max(ledger.header.delta for ledger in of), max(ledger.header.budget for ledger in of)
        spent = _spent([release for ledger in of for release in ledger.releases()], delta)
        together = f"together they spent epsilon {spent:.6g} at {delta:g}"
        said = f"platform {name} has {count} ledgers of as many identities: {together}"
        if len(identities) < count or b"" in identities:
            problems.append(
                f"platform {name} has {count} ledgers here, and not an identity for each: a second one was begun, or one was "
                f"copied and went on twice. Counted as if no charge were in both, {together}, whatever budget each names"
            )
        elif spent > budget:
            problems.append(f"{said}, above the budget of {budget:g}")
        else:
            notes.append(f"{said}, within the budget of {budget:g}")
    return problems, notes


def _spent(releases: Sequence[Release], delta: float) -> float:
    return min(one.epsilon(releases, delta).epsilon for one in (OPACUS, DP_ACCOUNTING))


def _across(platforms: Sequence[PlatformAudit], evidence: LedgerEvidence) -> Iterable[str]:
    if evidence.complete:
        found = {platform.platform for platform in platforms}
        for name in sorted({one.platform for one in evidence.witnesses if one.platform} - found):
            yield f"the coordinator has a receipt of platform {name}, but its ledger is not here"


def _homeless(ledgers: Sequence[LedgerSummary], evidence: LedgerEvidence, *, of: int) -> Iterable[str]:
    """Heads without a platform's name that none of several ledgers holds; of one alone, its own check has found them."""
    if of < 2 or len(ledgers) < of:
        return
    for one in evidence.witnesses:
        if not one.platform and not any(one.head in ledger.named for ledger in ledgers):
            yield f"{one.called} is in the chain of none of these ledgers: one of them was cut or rewritten"


def _elsewhere(platforms: Sequence[PlatformAudit], evidence: LedgerEvidence) -> Iterable[str]:
    """What was given for platforms whose ledgers are not here: nothing was checked by it."""
    here = {one.platform for one in platforms}
    for one in evidence.witnesses:
        if not one.source and one.platform and one.platform not in here:
            yield f"{one.called} for platform {one.platform} was not checked: no ledger of it is here"
    if any(one.source and one.platform not in here for one in evidence.witnesses):
        for name in sorted({one.platform for one in platforms if UNSEEN in one.unknown}):
            yield f"of the receipts and models that were given none is of platform {name}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value
