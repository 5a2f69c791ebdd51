"""Randomness of the private mechanisms.

`SecureNoise` draws from AES-256-CTR keyed by the operating system's entropy: nobody can predict it. Its Gaussians
are sums of four Box-Muller draws over two, so that no output pins down the bits behind it (Holohan & Braghin 2021,
"Secure random sampling in differential privacy", section 4). `SeededNoise` can be predicted by whoever knows the
seed; it is for simulations, and a deployed platform refuses it.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor


class NoiseSource(Protocol):
    """Where samples and noise come from."""

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal, float32, on the processor."""

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Independent coins, bool (count,)."""

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Uniform integers in [0, below), int64 (count,)."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Independent uniform words of 64 bits, uint64 (count,)."""


def gaussian(uniform: Tensor) -> Tensor:
    """Standard normals, each the sum of four Box-Muller draws over two.

    Args:
        uniform: float64 (4 n,), in [0, 1); overwritten.

    Returns:
        float32 (n,).
    """
    radius, angle = uniform.view(2, len(uniform) // 2)
    # 1 - u lies in (0, 1], so that the logarithm is finite.
    radius = radius.neg_().log1p_().mul_(-2.0).sqrt_()
    angle = angle.mul_(2.0 * math.pi)
    draws = angle.cos().mul_(radius) + angle.sin_().mul_(radius)
    total: Tensor = draws.view(2, len(uniform) // 4).sum(0).div_(2.0)
    return total.float()


class SecureNoise:
    """A cryptographic generator; two instances never repeat one another."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal by the sum of four Box-Muller draws over two."""
        return gaussian(torch.from_numpy(self._uniform(4 * math.prod(shape)))).view(shape)

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

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal."""
        return torch.from_numpy(np.asarray(self._random.standard_normal(shape, dtype=np.float32)))

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Independent coins."""
        return self._random.random(count) < probability

    def integers(self, count: int, below: int) -> NDArray[np.int64]:
        """Uniform integers."""
        return self._random.integers(below, size=count)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Uniform words."""
        return self._random.integers(0, 1 << 64, size=count, dtype=np.uint64)
