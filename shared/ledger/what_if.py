"""What a ledger's entries come to beyond its own epsilon: at every delta, for groups of people, in some runs, with more to come.

Everything here is computed from the entries alone, by the three accountants that an audit uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from shared.base.errors import InputError
from shared.ledger.summary import LedgerSummary
from shared.privacy.accountants import DP_ACCOUNTING, OPACUS, RENYI, family
from shared.privacy.releases import MAX_GROUP, MAX_INTEGER_GROUP, Release

DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
ROUNDS = (1, 2, 5, 10, 20, 50)
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Noise multipliers of a plan, as parts of the last charge's."""


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Epsilon of the same releases, three times over.

    Args:
        delta: At which it holds.
        renyi, opacus, dp_accounting: As `shared.ledger.audit.PlatformAudit`.
    """

    delta: float
    renyi: float
    opacus: float
    dp_accounting: float

    @property
    def epsilon(self) -> float:
        """The smallest; each of them is a bound."""
        return min(self.renyi, self.opacus, self.dp_accounting)


@dataclass(frozen=True, kw_only=True)
class PlanTable:
    """What a platform would have spent after more rounds.

    Args:
        budget, delta: The ledger's.
        spent: By now, as the accountant counts that the ledger records with; so are the figures to come.
        template: The last charge, whose sample rate and steps more rounds are taken to have.
        rounds: Rounds to come, by column.
        noise: Noise multiplier, by row.
        epsilon: noise x rounds. Above the budget where that many cannot be had.
    """

    budget: float
    delta: float
    spent: float
    template: Release
    rounds: tuple[int, ...]
    noise: tuple[float, ...]
    epsilon: tuple[tuple[float, ...], ...]

    @property
    def remaining(self) -> float:
        """Budget less what is spent. Epsilons do not simply add up: what it still buys is in the table."""
        return max(0.0, self.budget - self.spent)


def spending(releases: Sequence[Release], delta: float, *, people: int = 1) -> Spending:
    """Epsilon of releases at a delta, for so many people who are all among the users, or none of them.

    Raises:
        InputError: no number of people, or more than anything is bounded for.
    """
    _check_group(releases, people)
    renyi, opacus, pld = (one.epsilon(releases, delta, people=people).epsilon for one in (RENYI, OPACUS, DP_ACCOUNTING))
    return Spending(delta=delta, renyi=renyi, opacus=opacus, dp_accounting=pld)


def epsilon_curve(releases: Sequence[Release], deltas: Iterable[float] = DELTAS, *, people: int = 1) -> tuple[Spending, ...]:
    """Epsilon as a function of delta: a ledger's own delta is one point of it.

    Returns:
        Per delta, in its order: epsilon in nats by Rényi orders, by Opacus and by dp-accounting.

    Raises:
        InputError: a delta is not between 0 and 1; as `spending`.

    | given | result |
    |---|---|
    | no release | epsilon 0 at every delta |
    | a release without noise | infinite |
    | no delta | an empty curve |
    | a delta of 0, 1 or NaN | `InputError` |
    """
    return tuple(spending(releases, delta, people=people) for delta in deltas)


def _check_group(releases: Iterable[Release], people: int) -> None:
    if people < 1:
        raise InputError(f"a group of {people} people", where="--group", do="name a whole number from 1 on")
    for one in releases:
        most = MAX_INTEGER_GROUP if one.integers else MAX_GROUP
        if one.group_size * people > most:
            raise InputError(
                f"a group of {people} people" + (" under distributed noise" if one.integers else ""),
                where="--group",
                do=f"{most} examples at most" + (": rounding has no bound for more" if one.integers else ""),
            )


def compose_person(ledgers: Sequence[LedgerSummary], *, runs: Sequence[str] = ()) -> tuple[Release, ...]:
    """All releases of some ledgers, as they concern one person who is on each of these platforms.

    Args:
        runs: Names of the runs that count; by default all.

    Raises:
        InputError: no ledger has such a run.
    """
    known = {run for ledger in ledgers for run in ledger.runs()}
    for run in runs:
        if run not in known:
            raise InputError(f"no run {run[:63]!r} was charged", where="--run", do=f"choose among: {', '.join(sorted(known))}")
    return tuple(release for ledger in ledgers for run in (runs or ledger.runs()) for release in ledger.releases(run))


def plan_table(ledger: LedgerSummary, *, rounds: Sequence[int] = ROUNDS, factors: Sequence[float] = FACTORS) -> PlanTable | None:
    """What more rounds like the last charged one would spend, with more noise or less; None before the first charge."""
    if ledger.last is None or not ledger.private or not ledger.last.noise_multiplier:
        return None
    template, spent = ledger.last.release, ledger.releases()
    # The platform refuses by its own accountant: a plan by a tighter one would promise what it will not do.
    accountants = {RENYI, family(ledger.last.accountant)}
    noise = tuple(template.noise_multiplier * factor for factor in factors)
    delta = ledger.header.delta

    def after(multiplier: float, count: int) -> float:
        # Without the integer part: its share of the noise is planned anew for another multiplier.
        more = replace(template, noise_multiplier=multiplier, steps=template.steps * count, integers=None)
        return min(one.epsilon([*spent, more], delta).epsilon for one in accountants)

    return PlanTable(
        budget=ledger.header.budget,
        delta=delta,
        spent=min(one.epsilon(spent, delta).epsilon for one in accountants),
        template=template,
        rounds=tuple(rounds),
        noise=noise,
        epsilon=tuple(tuple(after(multiplier, count) for count in rounds) for multiplier in noise),
    )
