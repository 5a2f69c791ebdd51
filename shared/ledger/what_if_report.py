"""`fedfuse audit --curve --person --run --group --plan`, for a terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from shared.base.errors import InputError
from shared.base.terminal_table import terminal_table
from shared.ledger.summary import LedgerSummary
from shared.ledger.what_if import DELTAS, PlanTable, Spending, compose_person, epsilon_curve, plan_table, spending


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What was asked beyond the audit.

    Args:
        platforms: Those that the person is on.
        runs: Those that count; empty: all.
        people: Together.
        total: At the sum of the ledgers' deltas.
        curve: At `DELTAS`.
        plans: Platform -> what is left; empty where it was not asked for.
    """

    platforms: tuple[str, ...]
    runs: tuple[str, ...]
    people: int
    total: Spending
    curve: tuple[Spending, ...]
    plans: Mapping[str, PlanTable]

    def to_values(self) -> dict[str, Any]:
        """For JSON; an infinite epsilon is the word "inf"."""
        values = {
            "platforms": list(self.platforms),
            "runs": list(self.runs),
            "people": self.people,
            "total": asdict(self.total),
            "curve": [asdict(one) for one in self.curve],
            "plans": {name: asdict(plan) for name, plan in self.plans.items()},
        }
        found: dict[str, Any] = _finite(values)
        return found

    def render(self) -> RenderableType:
        """For a terminal."""
        who = "one person" if self.people == 1 else f"{self.people} people together"
        runs = f", runs {', '.join(self.runs)}" if self.runs else ""
        table = terminal_table(f"ε of {who} on {', '.join(self.platforms)}{runs}")
        for name in ("δ", "RDP", "PRV", "PLD"):
            table.add_column(name, justify="right")
        for one in sorted((*self.curve, self.total), key=lambda one: -one.delta):
            table.add_row(f"{one.delta:g}", *(_figure(value) for value in (one.renyi, one.opacus, one.dp_accounting)))
        bounds = "Each figure is an upper bound by itself, and the smallest of a line counts."
        if self.people > 1:
            bounds += " For several people under sampling RDP and PRV know a coarser one than PLD."
        return Group(table, Text(bounds), *(_plan(name, plan) for name, plan in self.plans.items()))


def what_if_report(
    summaries: Sequence[LedgerSummary | None],
    *,
    person: str = "",
    runs: Sequence[str] = (),
    people: int = 1,
    plan: bool = False,
) -> WhatIf:
    """Answer what was asked of some ledgers.

    Args:
        summaries: None for a ledger that cannot be read.
        person: Names of platforms, with commas between them; empty: all.

    Raises:
        InputError: there is no such platform or run, or a ledger that counts cannot be read.
    """
    ledgers: dict[str, list[LedgerSummary]] = {}
    for summary in summaries:
        if summary is not None:
            ledgers.setdefault(summary.header.platform, []).append(summary)
    names = tuple(dict.fromkeys(name.strip() for name in person.split(",") if name.strip()))
    for name in names:
        if name not in ledgers:
            raise InputError(f"no ledger of platform {name[:63]!r} is here", where="--person", do=f"choose: {', '.join(ledgers)}")
    unread = sum(summary is None for summary in summaries)
    if unread and not names:
        raise InputError(
            f"{unread} of {len(summaries)} ledgers cannot be read, so that what a person spent is not known",
            do="name platforms whose ledgers can be with --person",
        )
    names = names or tuple(ledgers)
    chosen = [ledger for name in names for ledger in ledgers[name]]
    releases = compose_person(chosen, runs=runs)
    delta = min(sum(one.header.delta for one in chosen), math.nextafter(1.0, 0.0))
    # A platform that came back with a new identity has two ledgers.
    plans = {
        name if len(of) == 1 else f"{name}, identity {ledger.identity.hex()[:12]}": plan_table(ledger)
        for name, of in (ledgers.items() if plan else ())
        for ledger in of
    }
    return WhatIf(
        platforms=names,
        runs=tuple(runs),
        people=people,
        total=spending(releases, delta, people=people),
        curve=epsilon_curve(releases, [one for one in DELTAS if one != delta], people=people),
        plans={name: table for name, table in plans.items() if table is not None},
    )


def _plan(name: str, plan: PlanTable) -> RenderableType:
    table = terminal_table(
        f"{name}: ε {_figure(plan.spent)} of {_figure(plan.budget)} is spent at δ = {plan.delta:g}, "
        f"{_figure(plan.remaining)} is left; after more rounds of {plan.template.kind} at that noise multiplier "
        "(in brackets: above the budget):",
    )
    table.add_column("noise", justify="right")
    for count in plan.rounds:
        table.add_column(f"{count} rounds" if count > 1 else "1 round", justify="right")
    for noise, row in zip(plan.noise, plan.epsilon, strict=True):
        cells = [_after(value, plan.budget) for value in row]
        table.add_row(f"{noise:.3g}", *cells)
    return table


def _after(value: float, budget: float) -> Text:
    return Text(_figure(value), style="green") if value <= budget else Text(f"({_figure(value)})", style="red")


def _figure(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.4g}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
