"""A model of a platform's own: after the federation, a residual adapter trained here from what is left of the budget.

Everything learnt so far is frozen as it is, and a fresh adapter beside it is trained on this platform's users alone, with
the same mechanism. It stays on the platform. It is used only if it ranks held-out items better, which a noised and charged
comparison decides; otherwise the platform goes on with the global model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.config.platform_file import PlatformFile
from client.privacy.bounded_sum import BoundedSum, of_contributions
from client.privacy.mechanism import CountMechanism, Mechanism
from client.privacy.noise_sources import NoiseSource
from client.run.adapter_partition import Part
from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.layers.lora import Parameters
from shared.ledger.format import Entry
from shared.model.adapter import drawn
from shared.model.factor_schedule import personalises
from shared.model.residual_factors import maps_in
from shared.privacy.accountants import PREFERRED
from shared.privacy.calibration import noise_multiplier
from shared.privacy.plan import signal_to_noise
from shared.privacy.releases import Release, ReleaseKind
from shared.secagg.fixed_point import planning

CONFIDENCE = 2.0
"""Standard deviations of its noise by which a comparison must be won: a model that is no better wins with probability 2.3 %."""


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
        comparison: One noised sum over the held-out users.
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
    budget: float,
    clip: float,
    group_size: int,
    parameters: int,
    entries: Sequence[Entry],
) -> PersonalPlan | None:
    """The plan for what is left of the budget, or None where too little is: then the global model is kept.

    Args:
        budget: Epsilon of all runs together; infinite when privacy is off.
        entries: The ledger. Charges of this very plan count for nothing, so that it is the same after a restart.
        parameters: Of the residual adapter.

    Guarantees:
        With everything in the ledger, both releases stay within `budget`; and with this run's charges, within the platform's
        `maximum_epsilon`.
    """
    personal, last, delta = settings.personal, settings.rounds + 1, file.privacy.delta
    private = math.isfinite(budget)
    comparison = CountMechanism(
        kind=ReleaseKind.EVALUATE,
        noise_multiplier=personal.comparison_noise if private else 0.0,
        dimension=1,
        group_size=group_size,
    )
    noise = 0.0
    if private:
        planned = Release(
            kind=ReleaseKind.TRAIN,
            noise_multiplier=1.0,
            sample_rate=settings.training.sample_rate,
            steps=personal.steps,
            group_size=group_size,
            integers=planning(),
        )
        others = [entry for entry in entries if (entry.run, entry.round) != (run, last)]
        limits = [(budget, [entry.release for entry in others])]
        if file.federation.maximum_epsilon is not None:
            limits.append((file.federation.maximum_epsilon, [entry.release for entry in others if entry.run == run]))
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
            sample_rate=settings.training.sample_rate,
            users=file.users,
            steps=personal.steps,
            noise_multiplier=noise,
            parameters=parameters,
        )
        if ratio < 1:
            return None
    training = Mechanism(
        users=file.users,
        sample_rate=settings.training.sample_rate,
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


def flattened(parameters: Parameters) -> dict[str, Tensor]:
    """One A and one B for each map, with core and residual in them; it computes the same."""
    plain: dict[str, Tensor] = {}
    for name in maps_in(parameters):
        a, b = parameters[f"{name}.lora_A"], parameters[f"{name}.lora_B"]
        if f"{name}.lora_R" in parameters:
            a = parameters[f"{name}.lora_R"] @ a
        if f"{name}.residual_A" in parameters:
            a = torch.cat([a, parameters[f"{name}.residual_A"]])
            b = torch.cat([b, parameters[f"{name}.residual_B"]], 1)
        plain[f"{name}.lora_A"], plain[f"{name}.lora_B"] = a, b
    return plain


def begun(shared: Parameters, part: Part) -> dict[str, Tensor]:
    """The same model with a fresh adapter beside it: the one learnt so far is all residual now.

    Args:
        shared: The global adapter completed, with this platform's own parameters.
    """
    frozen = {name.replace(".lora_", ".residual_"): value for name, value in flattened(shared).items()}
    device = next(iter(frozen.values())).device
    fresh = drawn(part.layout, seed=part.settings.seed, again=part.settings.rounds + 1)
    return {**shared, **frozen, **{name: torch.from_numpy(value).to(device) for name, value in fresh.items()}}


def gains(shared: NDArray[np.float64], own: NDArray[np.float64]) -> BoundedSum:
    """How much better the platform's own model is, summed over users.

    Args:
        shared, own: float64 (users,). NDCG@10 of each held-out user under the global model and under the own one, in [0, 1].
    """
    return of_contributions((own - shared)[:, None])


def wins(gained: BoundedSum, mechanism: CountMechanism, random: NoiseSource) -> bool:
    """Whether the platform's own model is better, by a noised comparison; the caller has charged for it.

    Guarantees:
        One user moves the sum of differences by at most 1. A model that is no better on these users wins with probability
        at most 2.3 %, whatever their number: the noise would have to exceed `CONFIDENCE` standard deviations.
    """
    noise = mechanism.point.noise if mechanism.private else 0.0
    return float(mechanism.privatise(gained, random)[0]) > CONFIDENCE * noise
