"""What is known of preferences, given their noised sum: factors, few enough to publish. It comes after the noise and costs none.

The noise is a symmetric matrix of independent entries, of variance s^2 on the diagonal and s^2 / 2 beside it, so its eigenvalues
fill the interval up to e = s sqrt(2 m) (Wigner). A sum whose own eigenvalue is t > e / 2 has one at t + e^2 / (4 t), beyond that
edge (Benaych-Georges & Nadakuditi 2011, "The eigenvalues and eigenvectors of finite, low rank perturbations of large random
matrices"): those within it are dropped, and the others are moved back, t = (l + sqrt(l^2 - e^2)) / 2.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from shared.base.errors import InputError

MOST_FACTORS = 512


def noise_edge(items: int, noise: float) -> float:
    """The largest eigenvalue of the noise alone, but for chance.

    Args:
        noise: Standard deviation of each number of the released vector (`shared/preferences/packing.py`).
    """
    return noise * math.sqrt(2 * items)


def public_ridge(items: int, noise: float) -> float:
    """Ridge of a regression on released factors alone: 1.2 times the edge of their noise, a rule that reads nobody's rows.

    >>> public_ridge(200, 0.5), public_ridge(200, 0.0)
    (12.0, 1.0)
    """
    return max(1.2 * noise_edge(items, noise), 1.0)


def preference_factors(noised: NDArray[np.float64], *, noise: float, most: int = MOST_FACTORS) -> NDArray[np.float32]:
    """Factors F, float32 (rank, items): F'F is the denoised matrix, positive semi-definite; the strongest first.

    Args:
        noised: float64 (items, items), symmetric.
        noise: As `noise_edge`; 0: the matrix is exact.
        most: Factors, at most.

    Returns:
        F, float32 (rank, items), rank at most `most`.

    Raises:
        InputError: a number is not finite.

    | given | result |
    |---|---|
    | no item | shape (0, 0) |
    | zeros; noise above every eigenvalue; `most` 0 | no factor, shape (0, items) |
    | a negative eigenvalue | dropped |
    | NaN or infinity | `InputError` |
    """
    if not np.isfinite(noised).all():
        raise InputError("a sum of preferences holds numbers that are not finite", do="look for them before the sum is denoised")
    edge = noise_edge(len(noised), noise)
    # Rounding leaves eigenvalues of about this size where the matrix has none.
    least = max(edge, 1e-9 * float(np.abs(noised).max(initial=0.0)) * len(noised))
    values, vectors = scipy.linalg.eigh(noised, subset_by_value=(least, np.inf), check_finite=False)
    order = np.argsort(-values)[:most]
    moved = (values[order] + np.sqrt(np.maximum(values[order] ** 2 - edge**2, 0.0))) / 2
    factors: NDArray[np.float32] = (np.sqrt(moved)[:, None] * vectors[:, order].T).astype(np.float32)
    return factors
