"""Auditing a run folder: are the ledgers whole, and do they say what their entries cost?

Nothing but the ledgers and the coordinator's receipts is needed. Every epsilon is computed anew
from the entries, by two independent libraries.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from shared.base.errors import FedfuseError, InputError
from shared.ledger.format import Ledger, read_ledger
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, family
from shared.privacy.spent import Spent

SAME = 1e-6
"""Relative difference that rounding may cause between two computations by one accountant."""

OTHER = 0.02
"""Relative difference that two tight accountants may have."""

MAX_METRICS = 4 << 20


@dataclass(frozen=True, kw_only=True)
class PlatformAudit:
    """One ledger, read, recomputed and compared.

    Args:
        file: Name of the ledger file.
        platform: From the header; the file's stem where the ledger cannot be read.
        entries: Kind of release -> number of entries.
        releases: Mechanism steps charged, over all entries.
        budget, delta, recorded: What the ledger says; None where it cannot be read.
        method: Which accountant recorded the last epsilon.
        opacus, dp_accounting: Recomputed from the entries alone.
        head: Hash of the last line.
        receipt: Head that the coordinator recorded; empty if none.
        later: Entries after the receipt: charges whose answer did not arrive. Legitimate.
        problems: What does not hold, in words.
    """

    file: str
    platform: str
    entries: Mapping[str, int] = field(default_factory=dict)
    releases: int = 0
    budget: float | None = None
    delta: float | None = None
    recorded: float | None = None
    method: str = ""
    opacus: Spent | None = None
    dp_accounting: Spent | None = None
    head: str = ""
    receipt: str = ""
    later: int = 0
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when everything that could be checked holds."""
        return not self.problems

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
    """The whole audit; `everywhere` is None where some ledger cannot be read."""

    run: str
    platforms: tuple[PlatformAudit, ...]
    everywhere: Everywhere | None = None
    general: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when no problem was found."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """Everything that does not hold, each with its ledger."""
        return [*self.general, *(f"{p.file}: {problem}" for p in self.platforms for problem in p.problems)]

    def to_json(self) -> str:
        """The report as JSON text; an infinite epsilon is the word "inf"."""
        values = {**asdict(self), "ok": self.ok, "problems": self.problems}
        for shown, platform in zip(values["platforms"], self.platforms, strict=True):
            shown["ok"] = platform.ok
        if self.everywhere is not None:
            values["everywhere"]["epsilon"] = self.everywhere.epsilon
        del values["general"]
        return json.dumps(_finite(values), indent=2, sort_keys=True, allow_nan=False)


def audit_run(run: Path) -> AuditReport:
    """The audit of every ledger under `run`/ledger, against `run`/metrics.json if that is there.

    Raises:
        InputError: there is no ledger, or metrics.json cannot be read.
    """
    paths = sorted((run / "ledger").glob("*.jsonl"))
    if not paths:
        raise InputError(
            "no ledger found",
            where=str(run / "ledger"),
            do="name a run's folder; in a deployment each platform keeps its ledger in its own state folder",
        )
    receipts = _receipts(run / "metrics.json")
    ledgers: list[Ledger] = []
    platforms: list[PlatformAudit] = []
    for path in paths:
        try:
            ledger = read_ledger(path)
        except FedfuseError as error:
            reason = f"{error.found} ({error.where})"
            platforms.append(
                PlatformAudit(file=path.name, platform=path.stem, receipt=receipts.get(path.stem, ""), problems=(reason,))
            )
            continue
        ledgers.append(ledger)
        platforms.append(examine(ledger, file=path.name, receipt=receipts.get(ledger.header.platform, "")))
    everywhere = compose(ledgers) if len(ledgers) == len(paths) else None
    return AuditReport(
        run=str(run), platforms=tuple(platforms), everywhere=everywhere, general=tuple(_across(platforms, receipts))
    )


def examine(ledger: Ledger, *, file: str, receipt: str = "") -> PlatformAudit:
    """One verified ledger against its own entries and, where given, the coordinator's receipt."""
    delta, releases = ledger.header.delta, ledger.releases
    opacus, dp_accounting = OPACUS.epsilon(releases, delta), DP_ACCOUNTING.epsilon(releases, delta)
    last = ledger.entries[-1] if ledger.entries else None
    shown = PlatformAudit(
        file=file,
        platform=ledger.header.platform,
        entries=dict(sorted(Counter(str(entry.kind) for entry in ledger.entries).items())),
        releases=sum(release.steps for release in releases),
        budget=ledger.header.budget,
        delta=delta,
        recorded=ledger.epsilon,
        method=str(last.accountant) if last else "",
        opacus=opacus,
        dp_accounting=dp_accounting,
        head=ledger.head,
        receipt=receipt,
    )
    problems = list(_arithmetic(ledger, opacus, dp_accounting))
    later = _after(ledger, receipt) if receipt else 0
    if later is None:
        problems.append("the ledger was cut or rewritten: the coordinator's receipt for it is not in its chain")
    return replace(shown, later=later or 0, problems=tuple(problems))


def compose(ledgers: Sequence[Ledger]) -> Everywhere:
    """What one person on all of these platforms has at most spent."""
    releases = [release for ledger in ledgers for release in ledger.releases]
    # A sum of deltas of 1 or more promises nothing; the largest float below 1 keeps the accountants' range.
    delta = min(sum(ledger.header.delta for ledger in ledgers), math.nextafter(1.0, 0.0))
    alone = [min(a.epsilon(ledger.releases, ledger.header.delta).epsilon for a in (OPACUS, DP_ACCOUNTING)) for ledger in ledgers]
    off = any(not ledger.private and ledger.entries for ledger in ledgers)
    nothing = Spent(epsilon=math.inf, accountant=OPACUS.epsilon([], delta).accountant)
    return Everywhere(
        platforms=len(ledgers),
        delta=delta,
        opacus=nothing if off else OPACUS.epsilon(releases, delta),
        dp_accounting=nothing if off else DP_ACCOUNTING.epsilon(releases, delta),
        basic=math.inf if off else sum(alone),
    )


def render_audit(report: AuditReport) -> RenderableType:
    """The report as a table for a terminal, with the composition and the problems under it."""
    table = Table(title=f"Privacy audit of {report.run}", title_justify="left")
    table.add_column("platform", overflow="fold")
    for column in ("ε recorded", "opacus", "dp-acc.", "budget", "δ"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    charged = []
    for p in report.platforms:
        kinds = ", ".join(f"{count} {kind}" for kind, count in p.entries.items()) or "nothing"
        charged.append(Text(f"{p.platform}: {kinds}; {p.releases} mechanism steps in all"))
        table.add_row(
            Text(p.platform),
            _figure(p.recorded),
            _figure(p.opacus.epsilon if p.opacus else None, loose=bool(p.opacus and not p.opacus.tight)),
            _figure(
                p.dp_accounting.epsilon if p.dp_accounting else None, loose=bool(p.dp_accounting and not p.dp_accounting.tight)
            ),
            _figure(p.budget),
            "-" if p.delta is None else f"{p.delta:g}",
            _verdict(p),
        )
    parts: list[RenderableType] = [table, *charged]
    if any(spent and not spent.tight for p in report.platforms for spent in (p.opacus, p.dp_accounting)):
        parts.append(Text("≤ marks a bound that holds but is loose (Rényi, or a group in Opacus)."))
    if report.everywhere is not None:
        e = report.everywhere
        parts.append(
            Text(
                f"A person on all {e.platforms} platforms: ε ≤ {_figure(e.epsilon)} at δ = {e.delta:g} "
                f"(opacus {_figure(e.opacus.epsilon)}, dp-accounting {_figure(e.dp_accounting.epsilon)}, "
                f"sum of the platforms' {_figure(e.basic)})."
            )
        )
    if any(p.recorded is not None and not p.private for p in report.platforms):
        parts.append(Text("Privacy was OFF on some platform: its epsilon is infinite and nothing is promised there."))
    parts += [Text(f"✗ {problem}", style="red") for problem in report.problems]
    return Group(*parts)


def _arithmetic(ledger: Ledger, opacus: Spent, dp_accounting: Spent) -> Iterable[str]:
    if not ledger.entries or not ledger.private:
        return  # read() has seen to it that a ledger without privacy records inf
    last = ledger.entries[-1]
    recorded, budget = last.epsilon, ledger.header.budget
    own, other = (opacus, dp_accounting) if family(last.accountant) is OPACUS else (dp_accounting, opacus)
    if not math.isclose(recorded, own.epsilon, rel_tol=SAME):
        yield f"recorded epsilon {recorded:.6g} ({last.accountant}); its entries give {own.epsilon:.6g} ({own.accountant})"
    # A loose bound above the record refutes nothing.
    if other.tight and recorded < other.epsilon * (1 - OTHER):
        yield f"recorded epsilon {recorded:.6g} is below {other.epsilon:.6g} that {other.accountant} gives for its entries"
    if min(opacus.epsilon, dp_accounting.epsilon) > budget:
        yield f"the entries spend epsilon {min(opacus.epsilon, dp_accounting.epsilon):.6g}, above the budget of {budget:g}"


def _after(ledger: Ledger, receipt: str) -> int | None:
    heads = [ledger.header.hash, *(entry.hash for entry in ledger.entries)]
    return len(heads) - 1 - heads.index(receipt) if receipt in heads else None


def _across(platforms: Sequence[PlatformAudit], receipts: Mapping[str, str]) -> Iterable[str]:
    found = Counter(platform.platform for platform in platforms)
    for name, count in sorted(found.items()):
        if count > 1:
            yield f"platform {name} has {count} ledgers here: each may be within its budget and their sum above it"
    for name in sorted(set(receipts) - set(found)):
        yield f"the coordinator has a receipt of platform {name}, but its ledger is not here"


def _receipts(path: Path) -> dict[str, str]:
    """Platform -> ledger head, from the coordinator's metrics.json; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_METRICS))
        platforms = content.get("platforms", {})
        heads = {str(name): values["ledger"] for name, values in platforms.items() if values.get("ledger")}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(
            f"metrics.json cannot be read ({type(error).__name__})", where=str(path), do="restore it, or audit the ledgers alone"
        ) from None
    for name, head in heads.items():
        if not isinstance(head, str) or not re.fullmatch(r"[0-9a-f]{64}", head):
            raise InputError(f"the receipt of platform {name[:63]} is not a SHA-256", where=str(path), do="restore metrics.json")
    return heads


def _verdict(platform: PlatformAudit) -> Text:
    if not platform.ok:
        return Text("FAILED", style="bold red")
    if not platform.private:
        return Text("privacy off", style="bold yellow")
    return Text("ok" + (f", {platform.later} unanswered" if platform.later else ""), style="green")


def _figure(value: float | None, *, loose: bool = False) -> str:
    if value is None:
        return "-"
    return "∞" if math.isinf(value) else f"{'≤ ' if loose else ''}{value:.4f}".rstrip("0").rstrip(".")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value
