"""Which generator a release's noise is drawn from."""

from __future__ import annotations

from client.device_noise import DeviceNoise
from client.noise import NoiseSource, SecureNoise, SeededNoise
from client.platform import Platform
from shared.errors import PrivacyError
from shared.settings import Settings


def generator(settings: Settings, platform: Platform, purpose: str, round_: int, *, simulation: bool) -> NoiseSource:
    """A generator for one release.

    Args:
        purpose: What is released; with the round, it keeps seeded streams apart.
        simulation: Whether seeded noise may be used.

    Raises:
        PrivacyError: the settings ask for seeded noise outside a simulation.
    """
    if settings.privacy.generator == "seeded":
        if not simulation:
            raise PrivacyError("seeded noise is for simulations only: who knows the seed can take it away", where=platform.name)
        return SeededNoise(settings.seed, platform.name, purpose, round_)
    device = platform.towers.encoder.device
    # A training step's noise is as large as the adapter; of everything else there is little.
    if purpose != "train" or device.type != "cuda":
        return SecureNoise()
    return DeviceNoise(device, compiled=platform.towers.encoder.compiled)
