"""Early stopping: training ends after so many evaluations in a row that are no improvement beyond their known noise.

Only figures that platforms have released, and charged, and public facts are read, so deciding costs no privacy: it is
post-processing (Dwork and Roth 2014, "The algorithmic foundations of differential privacy", Proposition 2.1). Whoever has the
released figures decides the same, a coordinator that was restarted among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from server.monitoring.run_events import EarlyStop, Tally
from shared.base.settings import Settings
from shared.privacy.plan import evaluation_rate
from shared.protocol.quality import METRICS, NDCG, WIDTH

CERTAINTY = 1.645
"""Standard errors beyond which a rise is an improvement: noise alone passes for one in one comparison of twenty."""


@dataclass(frozen=True, kw_only=True)
class ReleasedMean:
    """One platform's mean of a metric, as it released it.

    Args:
        mean: In [0, 1].
        users: Declared: the platform's weight.
        variance: Of what is known to be chance in it (`known_variance`).
    """

    mean: float
    users: int
    variance: float


Evaluation = Mapping[str, ReleasedMean]
"""Platform -> what it released of one model."""


@dataclass(frozen=True, kw_only=True)
class Rise:
    """How much a later evaluation is above an earlier one, on the platforms that answered both.

    Args:
        difference: Of the means weighted by declared users, as the global figure is.
        noise: By which chance alone exceeds 0 in one comparison of twenty.
    """

    difference: float
    noise: float

    @property
    def improvement(self) -> bool:
        """Whether it is more than noise."""
        return self.difference > self.noise


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """How long ago the last improvement of a history of evaluations was.

    Args:
        best: Round of the last improvement, with which later evaluations are compared.
        evaluations: That have come since, none of them an improvement.
        rise: Of the last evaluation over the one that it was compared with; None where there was none.
    """

    best: int
    evaluations: int
    rise: Rise | None


def known_variance(mean: float, *, users: int, noise_multiplier: float) -> float:
    """Variance of a released mean over one platform's users, from public facts alone.

    The mean is a quotient of two sums, of a metric and of ones, each with noise of standard deviation z sqrt(WIDTH), in users.
    Over n users its variance is about z^2 WIDTH (1 + mean^2) / n^2 (delta method). Where an evaluation reads a Poisson sample of
    rate q, that of the sample comes on top, at most (1 - q) mean (1 - mean) / n of a metric in [0, 1] (Bhatia and Davis 2000, "A
    better bound on the variance"). n is q times the declared users; of those who have nothing to hold out nobody outside knows,
    so it is the least that chance may be, and training rather goes on than ends for less.

    Args:
        users: Declared.
        noise_multiplier: z of the evaluation, per unit L2 bound of a user; 0 without noise.

    | given | result |
    |---|---|
    | no noise, all users read | 0 |
    | no noise, a sample read | the sample's variance |
    | a mean of 0 or 1 | the noise's variance |
    | twice the users, all read | a quarter |

    >>> round(math.sqrt(known_variance(0.2, users=500, noise_multiplier=10.0)), 4)
    0.0408
    """
    rate = evaluation_rate(users)
    read = rate * max(1, users)
    return noise_multiplier**2 * WIDTH * (1 + mean**2) / read**2 + (1 - rate) * mean * (1 - mean) / read


def rise_between(earlier: Evaluation, later: Evaluation) -> Rise | None:
    """How much the later one is above the earlier one, on the platforms that are in both; None where none is.

    | given | result |
    |---|---|
    | no platform in both | None |
    | the same figures | a difference of 0, which is no improvement, whatever the noise is |
    | figures without noise | any rise is an improvement |
    """
    both = sorted(earlier.keys() & later.keys())
    users = sum(later[name].users for name in both)
    if not users:
        return None
    weights = {name: later[name].users / users for name in both}
    variance = sum(weights[name] ** 2 * (earlier[name].variance + later[name].variance) for name in both)
    difference = sum(weights[name] * (later[name].mean - earlier[name].mean) for name in both)
    return Rise(difference=difference, noise=CERTAINTY * math.sqrt(variance))


def plateau_of(evaluations: Mapping[int, Evaluation]) -> Plateau:
    """How many evaluations have come since the last one that was an improvement over the one before it that was one.

    Args:
        evaluations: Round -> what was released after it, in any order.

    | given | result |
    |---|---|
    | nothing | 0 evaluations since round 0 |
    | one evaluation | 0 since its round |
    | each beyond noise above the one before | 0 since the last |
    | a rise within noise, and again, together beyond it | 0 since the second |
    | one that has no platform in common with the best | counting begins anew with it |
    | evaluations that nobody answered | not counted |
    """
    best, since, rise = 0, 0, None
    begun = False
    for at in sorted(evaluations):
        if not evaluations[at]:
            continue
        rise = rise_between(evaluations[best], evaluations[at]) if begun else None
        if rise is None or rise.improvement:
            best, since, begun = at, 0, True
        else:
            since += 1
    return Plateau(best=best, evaluations=since, rise=rise)


def released_evaluations(tallies: Mapping[str, Tally], settings: Settings) -> Mapping[int, Evaluation]:
    """Round -> what each platform released of the global model after it."""
    found: dict[int, dict[str, ReleasedMean]] = {}
    for name, tally in tallies.items():
        # A platform without privacy adds no noise.
        noise = settings.privacy.metrics_noise_multiplier if math.isfinite(tally.joined.budget) else 0.0
        for at, mean in tally.figures.items():
            variance = known_variance(mean, users=tally.users, noise_multiplier=noise)
            found.setdefault(at, {})[name] = ReleasedMean(mean=mean, users=tally.users, variance=variance)
    return found


def early_stop(tallies: Mapping[str, Tally], settings: Settings, *, round_: int) -> EarlyStop | None:
    """Why training ends after this round though it is not the last one; None if it goes on.

    | given | result |
    |---|---|
    | patience = 0 | None |
    | the last round | None |
    | a round that was not evaluated | None |
    | fewer evaluations since the best one than patience | None |
    | as many | an `EarlyStop` |
    """
    if not settings.patience or round_ >= settings.rounds:
        return None
    evaluations = released_evaluations(tallies, settings)
    found = plateau_of(evaluations)
    if round_ not in evaluations or found.evaluations < settings.patience:
        return None
    return EarlyStop(round=round_, rounds=settings.rounds, best=found.best, evaluations=found.evaluations)


def plateau_words(tallies: Mapping[str, Tally], settings: Settings) -> str:
    """What the last evaluation says of going on, to be added to a line; '' where nothing is decided by it."""
    if not settings.patience:
        return ""
    found = plateau_of(released_evaluations(tallies, settings))
    if found.rise is None:
        return ""
    rose = f"{METRICS[NDCG].title} {found.rise.difference:+.4f}"
    if found.rise.improvement:
        return f"; {rose}, beyond the noise of {found.rise.noise:.4f}"
    since = f"since round {found.best}" if found.best else "since before the first round"
    return f"; {rose} {since}, within the noise of {found.rise.noise:.4f}: {found.evaluations} of {settings.patience} in a row"
