"""What an audit checks of one ledger: its arithmetic, its accountants, and what somebody outside holds against it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

from shared.ledger.evidence import MechanismClaim, Witness
from shared.ledger.format import SIGNED, Entry, Line
from shared.ledger.summary import LedgerSummary
from shared.privacy.accountants import OPACUS, family
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Spent

SAME = 1e-6
"""Relative difference that rounding may cause between two computations by one accountant."""

OTHER = 0.02
"""Relative difference that two tight accountants may have."""

MOST_ROUNDS = 10_000
"""Of one run (`shared/base/settings.py`)."""

_SHOWN = 5
"""Problems of one kind that are spelled out."""


class ClaimChecks:
    """Holds the charges of a run against what the published model says of its mechanism."""

    def __init__(self, claims: Iterable[MechanismClaim]) -> None:
        self._claims = {(claim.platform, claim.run): claim for claim in claims}
        self._runs = {run for _, run in self._claims}
        self._rounds: dict[str, set[int]] = {}
        self._releases: dict[str, dict[Release, int]] = {}
        """Run -> each different charge, and the first round that has it."""

    def take(self, line: Line) -> None:
        """One more line; memory is bounded by what a run may be."""
        if not isinstance(line, Entry) or line.run not in self._runs or line.round > MOST_ROUNDS:
            return
        self._releases.setdefault(line.run, {}).setdefault(line.release, line.round)
        if line.kind is ReleaseKind.TRAIN and line.round >= 1:
            self._rounds.setdefault(line.run, set()).add(line.round)

    def problems(self, platform: str, *, elsewhere: Set[str] = frozenset()) -> Iterable[str]:
        """What does not fit, on that platform.

        Args:
            elsewhere: Runs that are charged in another ledger of the platform.
        """
        for (name, run), claim in self._claims.items():
            if name != platform or (run in elsewhere and run not in self._releases):
                continue
            charged = self._rounds.get(run, set())
            if len(charged) < claim.rounds:
                charges = f"{len(charged)} are charged: releases without a charge"
                yield f"the model holds {claim.rounds} rounds of run {run}, and {charges}"
            for release, round_ in sorted(self._releases.get(run, {}).items(), key=lambda item: item[1]):
                what = f"the charge of run {run}, round {round_} understates its mechanism"
                yield from (f"{what}: {why}" for why in _understated(claim, release, round_))


def _understated(claim: MechanismClaim, release: Release, round_: int) -> Iterable[str]:
    trained = release.kind is ReleaseKind.TRAIN
    if trained and round_ < 1:
        return
    most = claim.noise_multiplier if trained else claim.once.get(release.kind)
    if trained and (release.steps < claim.steps or release.sample_rate < claim.sample_rate * (1 - SAME)):
        yield (
            f"{release.steps} steps at sample rate {release.sample_rate:g}, the model's settings have {claim.steps} at "
            f"{claim.sample_rate:g}"
        )
    if most is not None and release.noise_multiplier > most * (1 + SAME):
        of = "" if trained else f" of {release.kind}"
        yield f"noise multiplier{of} {release.noise_multiplier:.6g}, the model says {most:.6g}"


def arithmetic_problems(ledger: LedgerSummary, opacus: Spent, dp_accounting: Spent) -> Iterable[str]:
    """What the recorded epsilon and the budget get wrong of the entries."""
    last = ledger.last
    if last is None or not ledger.private:
        return  # the reader has seen to it that a ledger without privacy records inf
    recorded, budget = last.epsilon, ledger.header.budget
    own, other = (opacus, dp_accounting) if family(last.accountant) is OPACUS else (dp_accounting, opacus)
    if not math.isclose(recorded, own.epsilon, rel_tol=SAME):
        yield f"recorded epsilon {recorded:.6g} ({last.accountant}); its entries give {own.epsilon:.6g} ({own.accountant})"
    # A loose bound above the record refutes nothing.
    if other.tight and recorded < other.epsilon * (1 - OTHER):
        yield f"recorded epsilon {recorded:.6g} is below {other.epsilon:.6g} that {other.accountant} gives for its entries"
    if min(opacus.epsilon, dp_accounting.epsilon) > budget:
        yield f"the entries spend epsilon {min(opacus.epsilon, dp_accounting.epsilon):.6g}, above the budget of {budget:g}"


def order_problems(renyi: Spent, opacus: Spent, pld: Spent) -> Iterable[str]:
    """What must hold between the three, whatever was released."""
    figures = [spent.epsilon for spent in (renyi, opacus, pld)]
    if not all(map(math.isfinite, figures)):
        return
    if opacus.epsilon > renyi.epsilon * (1 + SAME):
        yield f"the accountants disagree: Opacus gives {opacus.epsilon:.6g}, above its own Rényi bound {renyi.epsilon:.6g}"
    if pld.tight and pld.epsilon > renyi.epsilon * (1 + OTHER):
        yield f"the accountants disagree: {pld.accountant} gives {pld.epsilon:.6g}, above the Rényi bound {renyi.epsilon:.6g}"
    if pld.tight and opacus.tight and not math.isclose(pld.epsilon, opacus.epsilon, rel_tol=OTHER, abs_tol=2e-3):
        yield f"the accountants disagree: {pld.accountant} gives {pld.epsilon:.6g}, {opacus.accountant} {opacus.epsilon:.6g}"


def prefix_problems(ledger: LedgerSummary) -> Iterable[str]:
    """Epsilon as it was recorded on the way: an answer went out with it."""
    if not ledger.private:
        return
    for prefix in ledger.prefixes:
        if ledger.last is not None and prefix.line == ledger.last.seq:
            continue  # `arithmetic_problems` has it
        own = family(prefix.accountant).epsilon(prefix.releases, ledger.header.delta).epsilon
        if prefix.epsilon < own * (1 - SAME):
            yield f"line {prefix.line + 1} records epsilon {prefix.epsilon:.6g}; the entries up to it give {own:.6g}"


def belongs_to(witness: Witness, ledger: LedgerSummary) -> bool:
    """Whether a head is of that ledger: it is in its chain, or its owner signed it."""
    signed = witness.receipt is not None and witness.receipt.head_signed_by(ledger.identity)
    return witness.head in ledger.named or signed


def witness_problems(ledger: LedgerSummary, witnesses: Sequence[Witness]) -> Iterable[str]:
    """What outsiders hold and the ledger does not."""
    missing = [one for one in witnesses if one.head not in ledger.named]
    reached = max((place for place, one in enumerate(witnesses) if one.head in ledger.named), default=-1)
    for one in missing[:_SHOWN]:
        told = one.receipt is not None and bool(ledger.identity) and one.receipt.head_signed_by(ledger.identity)
        signed = ", and its platform signed that head" if told else ""
        if not told and one.receipt is not None and one.receipt.head_signature and ledger.identity:
            signed = (
                ", and its identity did not sign that head: the receipt is of another ledger of that name (of another "
                "simulation, or of an identity that the platform had before), or this one was begun anew"
            )
        later = one.receipt is not None and any(
            other.head in ledger.named and other.receipt is not None for other in witnesses[witnesses.index(one) :]
        )
        if later and told and reached >= 0:
            yield f"the ledger is one of two histories (a fork): {one.called} is not in its chain{signed}"
        else:
            yield f"the ledger was cut or rewritten: {one.called} is not in its chain{signed}"
    if len(missing) > _SHOWN:
        yield f"and {len(missing) - _SHOWN} more heads that are not in its chain"
    unnamed = 0
    for one in witnesses:
        named = ledger.named.get(one.head)
        if named is None:
            continue
        if one.left and ledger.identity and named.left != one.left:
            unnamed += 1
            if unnamed <= _SHOWN and named.line > _unsigned_until(ledger):
                yield f"a release without a charge: the answer of {one.source} is not what line {named.line + 1} names"
        if one.epsilon is not None and not math.isclose(one.epsilon, named.epsilon, rel_tol=SAME):
            yield f"{one.source} says epsilon {one.epsilon:.6g} at its head, the ledger says {named.epsilon:.6g} there"


def _unsigned_until(ledger: LedgerSummary) -> int:
    """The last line that an earlier version wrote."""
    return 0 if ledger.header.version >= SIGNED else ledger.unsigned
