"""What personalising may spend: the plan for what a run has left of a platform's budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from client.config.platform_file import PlatformFile
from client.privacy.mechanism import CountMechanism, Mechanism
from client.privacy.run_share import RunShare
from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.ledger.format import Entry
from shared.model.factor_schedule import personalises
from shared.privacy.accountants import PREFERRED
from shared.privacy.calibration import noise_multiplier
from shared.privacy.plan import evaluation_rate, signal_to_noise
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.fixed_point import planning


def reserved(settings: Settings) -> float:
    """The part of a platform's epsilon that the federation itself may plan with.

    >>> reserved(Settings(strategy="ffa")), reserved(Settings(strategy="ffa+personalise"))
    (1.0, 0.75)
    """
    return 1.0 - settings.personal.share if personalises(settings.strategy) else 1.0


@dataclass(frozen=True, kw_only=True)
class PersonalPlan:
    """What personalising will release about this platform's users.

    Args:
        training: All steps with one mechanism; what they make stays here, but recommendations and the answer show of it.
        comparison: One noised sum over held-out users, sampled as an evaluation's.
        round: Under which both are charged: the one after the last.
    """

    training: Mechanism
    comparison: CountMechanism
    steps: int
    round: int

    @property
    def releases(self) -> tuple[Release, Release]:
        """In the order of their charges."""
        return self.training.release(self.steps), self.comparison.release()


def plan_personal(
    settings: Settings,
    file: PlatformFile,
    *,
    run: str,
    share: RunShare,
    clip: float,
    group_size: int,
    parameters: int,
    entries: Sequence[Entry],
) -> PersonalPlan | None:
    """The plan for what is left of the budget, or None where too little is: then the global model is kept.

    Args:
        share: What the whole run may spend.
        entries: The ledger. Charges of this very plan count for nothing, so that it is the same after a restart.
        parameters: Of the residual adapter.

    Guarantees:
        With everything in the ledger, both releases stay within `share.total`; and with this run's charges, within `share.alone`.
    """
    personal, last, delta = settings.personal, settings.rounds + 1, file.privacy.delta
    private, rate = math.isfinite(share.budget), settings.training.rate(file.users)
    comparison = CountMechanism(
        kind=ReleaseKind.EVALUATE,
        noise_multiplier=personal.comparison_noise if private else 0.0,
        dimension=1,
        group_size=group_size,
        sample_rate=evaluation_rate(file.users),
    )
    noise = 0.0
    if private:
        planned = Release(
            kind=ReleaseKind.TRAIN,
            noise_multiplier=1.0,
            sample_rate=rate,
            steps=personal.steps,
            group_size=group_size,
            integers=planning(),
        )
        others = [entry for entry in entries if (entry.run, entry.round) != (run, last)]
        limits = [(share.total, [entry.release for entry in others])]
        if math.isfinite(share.alone):
            limits.append((share.alone, [entry.release for entry in others if entry.run == run]))
        try:
            noise = max(
                noise_multiplier(budget=most, delta=delta, planned=planned, fixed=[*spent, comparison.release()])
                for most, spent in limits
            )
            if not settings.simulation:  # which has no coordinator to distrust
                file.federation.require_noise(noise)
        except PrivacyError:
            return None
        ratio = signal_to_noise(
            batch=rate * file.users,
            steps=personal.steps,
            noise_multiplier=noise,
            parameters=parameters,
        )
        if ratio < 1:
            return None
    training = Mechanism(
        users=file.users,
        sample_rate=rate,
        clip=clip if private else math.inf,
        noise_multiplier=noise,
        dimension=parameters,
        group_size=group_size,
    )
    plan = PersonalPlan(training=training, comparison=comparison, steps=personal.steps, round=last)
    if private:
        # The promise itself, not the searches that led to it.
        for most, spent in limits:
            if not PREFERRED.epsilon([*spent, *plan.releases], delta).epsilon <= most:
                return None
    return plan
