"""Shamir's secret sharing (Shamir 1979) of many 32-byte secrets at once, over the integers modulo 2**31 - 1.

A secret is nine words: eight of 30 bits and one of 16. Each word is shared by a polynomial of its own, so fewer shares
than the threshold are uniformly distributed whatever the secret is: they say nothing of it, to anyone, ever.

The arithmetic is numpy's on 64-bit integers: multiplications, shifts and masks of whole arrays, with no branch and no
look-up that depends on a secret. (PyCryptodome's sharing, over GF(2**128), branches on the bits of Python integers and takes
one secret at a time; the tests hold ours against it.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

PRIME = 2**31 - 1
WORDS = 9
SECRET = 32
"""Bytes of a secret."""
NONE = np.uint32(2**32 - 1)
"""Not a share: the placeholder where a holder has none."""

Entropy = Callable[[int], bytes]
"""Gives so many bytes that nobody can predict, as `os.urandom`."""
_P = np.uint64(PRIME)
_31 = np.uint64(31)


def split_secret(secrets: NDArray[np.uint8], *, threshold: int, holders: int, entropy: Entropy) -> NDArray[np.uint32]:
    """Shares of every secret for holders 1 ... `holders`.

    Args:
        secrets: uint8 (m, 32).
        threshold: Shares that give the secrets back.

    Returns:
        uint32 (holders, m, 9), every word below the prime.
    """
    if not 1 <= threshold <= holders <= 1 << 16:
        raise ValueError(f"threshold {threshold} of {holders} holders")
    words = _words(secrets)
    shape = (threshold - 1, *words.shape)
    coefficients = _uniform(shape, entropy)
    points = np.arange(1, holders + 1, dtype=np.uint64)[:, None, None]
    value = np.zeros((holders, *words.shape), np.uint64)
    for coefficient in (*coefficients[::-1], words):  # Horner, highest first
        # With points up to 2**16 and a value below 2**32 the sum stays below 2**49, and folding brings it below 2**32 again.
        value *= points
        value += coefficient
        value = (value & _P) + (value >> _31)
    return _reduced(value).astype(np.uint32)


def combine(shares: NDArray[np.uint32], weights: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The secrets, from as many shares as the threshold and the `weights_at_zero` of their holders.

    Shares that do not belong together give bytes that mean nothing: the caller holds them against a commitment.

    Args:
        shares: uint32 (threshold, m, 9), each `valid`.

    Returns:
        uint8 (m, 32).
    """
    total = np.zeros(shares.shape[1:], np.uint64)
    for weight, share in zip(weights, shares, strict=True):
        total += _reduced(share.astype(np.uint64) * weight)
    return _bytes(_reduced(total))


def weights_at_zero(holders: Sequence[int]) -> NDArray[np.uint64]:
    """Lagrange's weights of those holders (numbered from 1) at zero; who they are is no secret.

    >>> weights_at_zero([1, 2]).tolist()  # f(0) = 2 f(1) - f(2)
    [2, 2147483646]
    """
    weights = []
    for own in holders:
        top = bottom = 1
        for other in holders:
            if other != own:
                top = top * other % PRIME
                bottom = bottom * (other - own) % PRIME
        weights.append(top * pow(bottom, -1, PRIME) % PRIME)
    return np.array(weights, np.uint64)


def valid(shares: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which shares are shares at all: True where each of the nine words is below the prime."""
    return np.asarray((shares < np.uint32(PRIME)).all(axis=-1))


def _reduced(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The value modulo 2**31 - 1, for values below 2**63."""
    for _ in range(2):
        value = (value & _P) + (value >> _31)
    # Now at most 2**31: subtract the prime where it fits, without a branch.
    return np.asarray(value - _P * (value >= _P))


def _uniform(shape: tuple[int, ...], entropy: Entropy) -> NDArray[np.uint64]:
    """Uniform words below the prime: 31 bits each, drawn anew where they are the prime itself."""
    size = int(np.prod(shape))
    words = np.frombuffer(entropy(4 * size), "<u4") >> np.uint32(1)
    while (again := np.flatnonzero(words == PRIME)).size:
        words = words.copy()
        words[again] = np.frombuffer(entropy(4 * again.size), "<u4") >> np.uint32(1)
    return words.astype(np.uint64).reshape(shape)


def _words(secrets: NDArray[np.uint8]) -> NDArray[np.uint64]:
    if secrets.dtype != np.uint8 or secrets.ndim != 2 or secrets.shape[1] != SECRET:
        raise ValueError(f"secrets of type {secrets.dtype} and shape {secrets.shape}")
    limbs = np.ascontiguousarray(secrets).view("<u8").astype(np.uint64)
    words = np.zeros((len(secrets), WORDS), np.uint64)
    for at in range(WORDS):
        limb, shift = divmod(30 * at, 64)
        words[:, at] = limbs[:, limb] >> np.uint64(shift)
        if shift > 34 and limb < 3:
            words[:, at] |= limbs[:, limb + 1] << np.uint64(64 - shift)
    return words & np.uint64(2**30 - 1)


def _bytes(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    limbs = np.zeros((len(words), 4), np.uint64)
    for at in range(WORDS):
        limb, shift = divmod(30 * at, 64)
        limbs[:, limb] |= words[:, at] << np.uint64(shift)
        if shift > 34 and limb < 3:
            limbs[:, limb + 1] |= words[:, at] >> np.uint64(64 - shift)
    return limbs.astype("<u8").view(np.uint8).reshape(len(words), SECRET)
