"""What a platform intends to release in one run, decided before the first round.

A plan that cannot be kept, or whose update would be noise, is refused here and not discovered at
the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.base.errors import InputError, NoisyPlan, PrivacyError
from shared.preferences.sum_kind import SumKind
from shared.privacy.accountants import PREFERRED, Accountant
from shared.privacy.calibration import noise_multiplier
from shared.privacy.integers import Integers
from shared.privacy.releases import Release, ReleaseKind
from shared.privacy.spent import Method

EVALUATED = 10_000
"""Declared users up to whom an evaluation reads all; of more it reads a Poisson sample that is expected to have so many."""
LIKES_NOISE = 5.0
"""Noise multiplier of how popular shared items are, over that of which are liked together: a 25th of what both spend, about."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that one run will release about a user, and what it will have cost.

    Args:
        releases: In the order of release; empty when privacy is off.
        budget, delta: What the platform may spend.
        noise_multiplier: Of training; 0 when privacy is off, or nothing is trained.
        preference_noise: Noise multiplier of the sum of preferences; 0 when privacy is off, or none is shared.
        taste_noise: The same of the sum behind the taste map.
        epsilon: What the whole plan spends; infinite when privacy is off.
        accountant: The method behind `epsilon`.
        signal_to_noise: See `signal_to_noise`; infinite when privacy is off.
    """

    releases: tuple[Release, ...]
    budget: float
    delta: float
    noise_multiplier: float
    epsilon: float
    accountant: Method
    signal_to_noise: float
    preference_noise: float = 0.0
    taste_noise: float = 0.0

    @property
    def private(self) -> bool:
        """False when the budget is infinite: nothing is promised, and no noise is added."""
        return math.isfinite(self.budget)

    def __str__(self) -> str:
        if not self.private:
            return "privacy is OFF: budget inf, no noise is added, epsilon is infinite"
        noise = noise_words(self.noise_multiplier, self.preference_noise, self.taste_noise, digits=".3f")
        return (
            f"epsilon {self.epsilon:.3f} of {self.budget:g} at delta {self.delta:g} ({self.accountant}), "
            f"noise multiplier {noise}, signal to noise {self.signal_to_noise:.1f}"
        )


def evaluation_rate(users: int) -> float:
    """Probability that an evaluation reads a user's held-out item, on a platform that declares so many users.

    >>> evaluation_rate(500), evaluation_rate(1_000_000)
    (1.0, 0.01)
    """
    return min(1.0, EVALUATED / max(1, users))


def sum_multiplier(of: SumKind, *, preference_noise: float, taste_noise: float) -> float:
    """Noise multiplier of a sum of what users like: of pairs of items as it is, of single items `LIKES_NOISE` times it."""
    return {
        SumKind.TASTE: taste_noise,
        SumKind.LIKES: LIKES_NOISE * preference_noise,
        SumKind.PREFERENCES: preference_noise,
    }[of]


def short_number(value: float, decimals: int = 2) -> str:
    """A number for a person: with so many decimals, or with two digits where these would say nothing of it.

    >>> short_number(7.989), short_number(0.0001), short_number(0.0), short_number(3.14159, 1)
    ('7.99', '0.0001', '0.00', '3.1')
    """
    return f"{value:.{decimals}f}" if not value or abs(value) >= 10.0 ** (1 - decimals) else f"{value:.2g}"


def noise_words(noise_multiplier: float, preference_noise: float, taste_noise: float = 0.0, *, digits: str = ".2f") -> str:
    """The noise multipliers of a plan, for a person: that of training, if there is one, and those of what is summed once.

    >>> noise_words(1.5, 0.0), noise_words(0.0, 0.55), noise_words(1.5, 0.55, digits=".4g")
    ('1.50', '0.55 of preferences', '1.5, 0.55 of preferences')
    """
    once = [(preference_noise, "preferences"), (taste_noise, "the taste map")]
    summed = [f"{noise:{digits}} of {what}" for noise, what in once if noise]
    return ", ".join([*([f"{noise_multiplier:{digits}}"] if noise_multiplier or not summed else []), *summed])


def signal_to_noise(*, batch: float, steps: int, noise_multiplier: float, parameters: int) -> float:
    """Upper bound of the run's summed clipped gradients over the expected norm of its summed noise.

    With clipping bound C the gradients of T = `steps` steps sum to at most B T C in expectation over the
    sampling, B = `batch` users being expected in a step, reached only if all of them agree; the noise is
    N(0, T z² C² I) in `parameters` dimensions, of norm about z C sqrt(T d). The ratio, B sqrt(T) / (z sqrt(d)),
    has no unit.

    Returns:
        The ratio, 0 or more.

    | given | result |
    |---|---|
    | a noise multiplier of 0 | infinite, whatever the rest is |
    | an expected batch or steps of 0 | 0 |
    | no parameter | infinite: there is no noise either |

    >>> round(signal_to_noise(batch=0.15 * 943, steps=200, noise_multiplier=1.5, parameters=36864), 2)
    6.95
    """
    if noise_multiplier == 0 or parameters == 0:
        return math.inf
    return batch * math.sqrt(steps) / (noise_multiplier * math.sqrt(parameters))


def preference_signal(*, users: int, items: int, noise_multiplier: float) -> float:
    """The largest eigenvalue that a sum of preferences can have, all users liking the same, over that of its noise alone.

    Below 1 nothing is left of the sum (`shared/preferences/denoising.py`). It has no unit; infinite without noise.

    >>> round(preference_signal(users=943, items=1024, noise_multiplier=0.6), 1)
    34.7
    """
    return users / (noise_multiplier * math.sqrt(2 * items)) if noise_multiplier else math.inf


@dataclass(frozen=True, kw_only=True)
class PreferencePlan:
    """What a run is to release of which items, and which directions of their texts, are liked together.

    Args:
        share: Part of the epsilon that is not spent otherwise, in (0, 1]; the rest is training's.
        items: Items whose preferences are summed, at most; 0: none are.
        map_share: The same as `share` for the sum behind the taste map, which is taken first.
        directions: Of the taste map; 0: there is none.
    """

    share: float
    items: int
    map_share: float = 1.0
    directions: int = 0


def make_plan(
    *,
    budget: float,
    delta: float,
    users: int,
    sample_rate: float,
    steps: int,
    prior_noise_multiplier: float,
    group_size: int,
    parameters: int,
    preferences: PreferencePlan | None = None,
    evaluations: Sequence[Release] = (),
    integers: Integers | None = None,
    shared: bool = False,
    accept_noise: bool = False,
    accountant: Accountant = PREFERRED,
) -> Plan:
    """The plan of one run: the popularity prior, a taste map, preferences, `steps` training steps in all, and `evaluations`.

    A taste map is one release (`client/privacy/taste_release.py`). Preferences are two: how popular the shared items are, by
    which the most popular are chosen, with `LIKES_NOISE` times the noise; and which of those are liked together. All are sums of
    one vector of norm 1 a user (`client/privacy/preference_release.py`), whatever the user's social ties, so their group is 1.

    Args:
        budget: Epsilon, > 0; infinite turns privacy off.
        delta: In (0, 1).
        users: Declared number of users (public).
        sample_rate: Poisson sampling probability of an example, per step.
        steps: Training steps of the whole run; 0 where preferences alone are shared.
        prior_noise_multiplier: Noise of the popularity prior. One user's rows enter it once, whatever
            their social ties, so its group is 1.
        group_size: Greatest number of training examples that one user touches; see `groups`.
        parameters: Trainable parameters that leave the platform.
        preferences: None: none are shared.
        evaluations: Noised evaluations, if any.
        integers: The integer part of the releases, `fixed_point.planning`. The noise multiplier is then what the noise must be
            over one user's integer vector, and suffices at every finer scale; None plans real-valued Gaussians.
        shared: Whether platforms share the noise of a step, under a secure sum.
        accept_noise: Whether an update that is noise is planned all the same; what it spends is what it would be otherwise.
        accountant: Who counts.

    Returns:
        The releases in their order, each with its noise multiplier (no unit), the epsilon of all of them at `delta`, in nats,
        and the bound of signal to noise.

    Raises:
        NoisyPlan: the update would be noise. Under shared noise that is the coordinator's to judge, by
            `signal_to_noise` of all platforms' users: the plan states it for this one's alone.
        PrivacyError: the budget cannot be kept.
        InputError: a value is out of its range.

    | given | result |
    |---|---|
    | an infinite budget | no release, no noise, an infinite epsilon |
    | 0 users or parameters; a budget of 0 or NaN; a delta of 0 or 1 | `InputError` |
    | 0 steps and no preferences | `InputError`: nothing to do |
    | 5 users, and a thousand parameters | `NoisyPlan`; with `accept_noise`, the plan |
    | a budget that the popularity prior alone spends | `BudgetExceeded` |
    """
    for name, value in (("users", users), ("parameters", parameters)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} is {value!r}", where="the privacy plan", do=f"{name} must be a whole number, at least 1")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise InputError(f"budget is {budget!r}", where="the privacy plan", do="an epsilon above 0, or inf for no privacy")
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta!r}", where="the privacy plan", do="delta must be above 0 and below 1")
    if steps == 0 and preferences is None:
        raise InputError("steps is 0, and no preferences are shared", where="the privacy plan", do="train, or share preferences")
    # Made before the budget is looked at, so that its values are checked in a run without privacy too.
    training = Release(
        kind=ReleaseKind.TRAIN,
        noise_multiplier=1.0,
        sample_rate=sample_rate,
        steps=steps or 1,
        group_size=group_size,
        integers=integers,
    )
    popularity = Release(kind=ReleaseKind.POPULARITY, noise_multiplier=prior_noise_multiplier, integers=integers)
    if math.isinf(budget):
        return Plan(
            releases=(),
            budget=math.inf,
            delta=delta,
            noise_multiplier=0.0,
            epsilon=math.inf,
            accountant=Method.NONE,
            signal_to_noise=math.inf,
        )
    before: tuple[Release, ...] = (popularity,) if steps else ()
    together = taste = 0.0
    if preferences is not None and preferences.directions:
        released = Release(kind=ReleaseKind.TASTE, noise_multiplier=1.0, integers=integers)
        others = (*before, *evaluations)
        part = _part_of(budget, others, preferences.map_share if steps or preferences.items else 1.0, delta, accountant)
        taste = noise_multiplier(budget=part, delta=delta, planned=released, fixed=others, accountant=accountant)
        before = (*before, replace(released, noise_multiplier=taste))
    if preferences is not None and preferences.items:
        released = Release(kind=ReleaseKind.PREFERENCES, noise_multiplier=1.0, integers=integers)
        others = (*before, *evaluations)
        part = _part_of(budget, others, preferences.share if steps else 1.0, delta, accountant)
        together = noise_multiplier(
            budget=part,
            delta=delta,
            planned=released,
            fixed=others,
            multiples=[(popularity, LIKES_NOISE)],
            accountant=accountant,
        )
        likes = replace(popularity, noise_multiplier=LIKES_NOISE * together)
        before = (*before, likes, replace(released, noise_multiplier=together))
    lengthened = integers.norm / integers.reach if integers is not None else 1.0
    trained: tuple[Release, ...] = ()
    noise = 0.0
    if steps:
        fixed = (*before, *evaluations)
        noise = noise_multiplier(budget=budget, delta=delta, planned=training, fixed=fixed, accountant=accountant)
        trained = (replace(training, noise_multiplier=noise),)
        ratio = signal_to_noise(
            batch=sample_rate * users, steps=steps, noise_multiplier=noise * lengthened, parameters=parameters
        )
        if ratio < 1 and not shared and not accept_noise:
            raise NoisyPlan(
                f"the planned update would be noise: even if all gradients agreed, they would sum to {ratio:.3g} of the noise's "
                f"norm (noise multiplier {noise:.3g}, {users} users, sample rate {sample_rate:g}, {steps} steps, "
                f"{parameters} parameters)",
                where=f"the privacy plan for epsilon {budget:g} at delta {delta:g}",
                do="more users, a larger budget, a larger sample rate, fewer parameters (model.rank, model.layers), "
                "or the noise shared among platforms; a simulation that is to show this: --set privacy.accept_noise=true",
            )
    else:
        assert preferences is not None
        width, summed = (preferences.items, together) if preferences.items else (preferences.directions, taste)
        ratio = preference_signal(users=users, items=width, noise_multiplier=summed)
    releases = (*before, *trained, *evaluations)
    spent = accountant.epsilon(releases, delta)
    if not spent.epsilon <= budget:  # the promise itself, not the search that led to it
        raise PrivacyError(f"the plan would spend epsilon {spent.epsilon:.6g} of {budget:.6g}", where="the privacy plan")
    return Plan(
        releases=releases,
        budget=float(budget),
        delta=delta,
        noise_multiplier=noise,
        epsilon=spent.epsilon,
        accountant=spent.accountant,
        signal_to_noise=ratio,
        preference_noise=together,
        taste_noise=taste,
    )


def _part_of(budget: float, others: Sequence[Release], share: float, delta: float, accountant: Accountant) -> float:
    """Epsilon of `others` and of a share of what they leave."""
    besides = accountant.epsilon(others, delta).epsilon if others else 0.0
    return min(budget, besides + share * (budget - besides))  # with nothing left, a refusal names the budget
