"""Which generator a release's sample and noise are drawn from."""

from __future__ import annotations

from client.privacy.noise_sources import NoiseSource, SecureNoise, SeededNoise
from shared.base.errors import PrivacyError
from shared.base.settings import Settings


def generator(settings: Settings, platform: str, purpose: str, round_: int, *, simulation: bool) -> NoiseSource:
    """A generator for one release.

    Args:
        platform: Its name.
        purpose: What is released; with the round, it keeps seeded streams apart.
        simulation: Whether seeded noise may be used.

    Raises:
        PrivacyError: the settings ask for seeded noise outside a simulation.
    """
    if settings.privacy.generator == "seeded":
        if not simulation:
            raise PrivacyError("seeded noise is for simulations only: who knows the seed can take it away", where=platform)
        return SeededNoise(settings.seed, platform, purpose, round_)
    return SecureNoise()
