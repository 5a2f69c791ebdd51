"""An audit's report as a person reads it in a terminal."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.text import Text

from shared.base.terminal_table import terminal_table
from shared.ledger.audit import AuditReport, AuditVerdict, PlatformAudit
from shared.ledger.format import SIGNED

_STYLE = {AuditVerdict.SOUND: "bold green", AuditVerdict.UNSOUND: "bold red", AuditVerdict.UNKNOWN: "bold yellow"}


def render_audit(report: AuditReport) -> RenderableType:
    """The report as a table for a terminal, with the composition and the problems under it."""
    table = terminal_table(f"Privacy audit of {report.run}")
    table.add_column("platform", overflow="fold")
    for column in ("ε recorded", "RDP", "PRV", "PLD", "budget", "δ"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    charged = []
    for p in report.platforms:
        kinds = ", ".join(f"{count} {kind}" for kind, count in p.entries.items()) or "nothing"
        said = f"{p.platform}: {kinds}; {p.releases} mechanism steps in all"
        if p.version >= SIGNED or p.released:
            said += f"; {p.released} answers named"
            said += f", {p.unreleased} charges without one" if p.unreleased else ""
            said += f", {p.rowless} answers that no row took part in, as it states" if p.rowless else ""
        charged.append(Text(said))
        if p.vouched is not None:
            heads = f"{p.checked} head{'s' if p.checked != 1 else ''}"
            upto = f"up to line {p.vouched + 1} of {p.lines + 1} ({p.voucher})"
            checked = f"{p.platform}: checked against {heads} from outside, {upto}"
            charged.append(Text(f"{checked}; lines that were cut off after it would not be seen"))
        charged += [Text(f"{p.platform}: {lack}", style="yellow") for lack in p.lacks]
        charged += [Text(f"{p.platform}: {reason}", style="yellow") for reason in p.unknown]
        table.add_row(
            Text(p.platform),
            _figure(p.recorded),
            _figure(p.renyi.epsilon if p.renyi else None),
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
        parts.append(Text("RDP and PRV are Opacus', PLD is dp-accounting's. ≤ marks a bound that holds but is loose."))
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
    parts += [Text(note) for note in report.notes]
    parts += [Text(f"✗ {problem}", style="red") for problem in report.problems]
    parts.append(Text(f"Verdict: {report.verdict}", style=_STYLE[report.verdict]))
    return Group(*parts)


def _verdict(platform: PlatformAudit) -> Text:
    if not platform.ok:
        return Text("FAILED", style="bold red")
    off = "" if platform.private or platform.budget is None else ", privacy off"
    if platform.verdict is AuditVerdict.UNKNOWN:
        return Text(f"cannot tell{off}", style="bold yellow")
    if off:
        return Text("ok, privacy off", style="bold yellow")
    return Text("ok" + (f", {platform.later} unanswered" if platform.later else ""), style="green")


def _figure(value: float | None, *, loose: bool = False) -> str:
    if value is None:
        return "-"
    return "∞" if math.isinf(value) else f"{'≤ ' if loose else ''}{value:.4f}".rstrip("0").rstrip(".")
