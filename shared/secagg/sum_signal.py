"""Whether what all platforms sum would be noise: decided of all of them together, for the noise is in the sum alone."""

from __future__ import annotations

from collections.abc import Sequence

from shared.base.errors import NoisyPlan
from shared.base.settings import Settings
from shared.privacy.plan import preference_signal, signal_to_noise
from shared.secagg.noise_agreement import Agreement


def require_signal(settings: Settings, agreement: Agreement, *, users: Sequence[int], parameters: int, shared: int = 0) -> float:
    """The run's signal-to-noise bound over all platforms' users.

    Args:
        users: That each platform declares.
        shared: Items that platforms have in common; 0 where none are summed.

    Raises:
        NoisyPlan: it is below 1, and that was not accepted.
    """
    if not settings.trains:
        return _require_preference_signal(settings, agreement, users=sum(users), shared=shared)
    ratio = signal_to_noise(
        batch=settings.training.batch(users),
        steps=settings.rounds,
        noise_multiplier=agreement.noise_multiplier,
        parameters=parameters,
    )
    return _accepted(
        settings,
        ratio,
        f"the planned sums would be noise: even if all gradients agreed, they would be {ratio:.3g} of the noise's norm "
        f"({sum(users)} users on all platforms, {settings.rounds} rounds, {parameters} parameters)",
        noise=agreement.noise_multiplier,
        do="more users or rounds, a larger budget or sample rate, or fewer parameters (model.rank, model.layers)",
    )


def _require_preference_signal(settings: Settings, agreement: Agreement, *, users: int, shared: int) -> float:
    """The same of a run that shares preferences alone."""
    preferences = settings.preferences
    # Nothing in common is no noise: such a run ends by saying so.
    items = max(1, min(preferences.items, shared)) if preferences.items else preferences.map
    noise = agreement.preference_noise if preferences.items else agreement.taste_noise
    ratio = preference_signal(users=users, items=items, noise_multiplier=noise)
    return _accepted(
        settings,
        ratio,
        f"the sum of preferences would be noise: even if all users liked the same, it would be {ratio:.3g} of the noise "
        f"({users} users on all platforms, {items} {'items' if preferences.items else 'directions'})",
        noise=noise,
        do="more users, a larger budget, or fewer items (preferences.items, preferences.map)",
    )


def _accepted(settings: Settings, ratio: float, found: str, *, noise: float, do: str) -> float:
    """The ratio, where it is at least 1 or noise was accepted."""
    if ratio < 1 and not settings.privacy.accept_noise:
        cure = f"{do}; a simulation that is to show this: --set privacy.accept_noise=true"
        raise NoisyPlan(found, where=f"distributed noise, multiplier {noise:.3g}", do=cure)
    return ratio
