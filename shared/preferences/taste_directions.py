"""Directions of items' texts that every platform computes alike, whatever its catalogue.

A frozen backbone's vectors are centred on the mean of a platform's own catalogue, which is public, projected to d numbers, and
made of length 1. Vectors of one trade lie in a narrow cone, whose axis differs from trade to trade: centred on the vectors of a
public list of 4,000 words, one direction held all of the sum, and cosines ranked films at NDCG@10 .051 instead of .067.

The projection is orthogonal and drawn from a fixed seed (Johnson & Lindenstrauss 1984), so that nothing has to be sent, and
rounding cannot turn it from one machine to another. Principal components of the words' vectors in its place: .058.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError

MOST_DIRECTIONS = 256
Floats = NDArray[np.float64]


def public_projection(width: int, directions: int) -> Floats:
    """Orthonormal columns, float64 (width, directions), the same on every machine.

    Args:
        width: Of the backbone's vectors.

    Raises:
        InputError: there are more directions than numbers.

    >>> basis = public_projection(16, 4)
    >>> bool(np.allclose(basis.T @ basis, np.eye(4)))
    True
    """
    if not 1 <= directions <= min(width, MOST_DIRECTIONS):
        raise InputError(f"{directions} directions of vectors of {width}", where="preferences.map", do=f"at most {width}")
    seed = hashlib.shake_256(f"fedfuse taste {width} {directions}".encode()).digest(-(-width * directions // 8))
    bits = np.unpackbits(np.frombuffer(seed, np.uint8), count=width * directions)
    basis, upper = np.linalg.qr(2.0 * bits.reshape(width, directions) - 1.0)
    # The factorization is unique once its diagonal is positive.
    found: Floats = basis * np.where(np.diag(upper) < 0, -1.0, 1.0)
    return found


def item_directions(vectors: NDArray[np.float32], directions: int) -> Floats:
    """What a taste map sees of a catalogue, float64 (items, directions), rows of length 1, or 0 for an item like their mean.

    Args:
        vectors: float32 (items, width). Of the whole public catalogue, by the frozen backbone.
    """
    exact = vectors.astype(np.float64)
    projected = (exact - exact.mean(0)) @ public_projection(vectors.shape[1], directions)
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    found: Floats = np.where(lengths > 1e-9, projected / np.maximum(lengths, 1e-9), 0.0)
    return found
