"""Randomness of the private mechanisms: coins for samples, and uniform words from which rounding and integer noise are made.

`SecureNoise` draws from AES-256-CTR keyed by the operating system's entropy: nobody can predict it. `SeededNoise` can be
predicted by whoever knows the seed; it is for simulations, and a deployed platform refuses it.
"""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray


class NoiseSource(Protocol):
    """Where samples and noise come from."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Independent coins, bool (count,)."""

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Uniform integers in [0, below), int64 (count,)."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Independent uniform words of 64 bits, uint64 (count,)."""


class SecureNoise:
    """A cryptographic generator; two instances never repeat one another."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Independent coins from 53-bit uniforms."""
        return self._uniform(count) < probability

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Uniform integers from 53-bit uniforms; the bias is below 2^-53 times `below`."""
        return (self._uniform(count) * below).astype(np.int64)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The generator's own output."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)

    def _uniform(self, count: int) -> NDArray[np.float64]:
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class SeededNoise:
    """Reproducible randomness for simulations.

    Args:
        seed: Whole numbers and words that name the stream (run seed, platform, round).
    """

    def __init__(self, *seed: int | str) -> None:
        words = [part if isinstance(part, int) else int.from_bytes(part.encode()[:64], "big") for part in seed]
        self._random = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Independent coins."""
        return self._random.random(count) < probability

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Uniform integers."""
        return self._random.integers(below, size=count)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Uniform words."""
        return self._random.integers(0, 1 << 64, size=count, dtype=np.uint64)
