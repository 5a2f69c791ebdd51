"""What a noised sum of preferences says to somebody who knows which items are alike; it comes after the noise and costs none.

Before the sum M is seen, items that are alike are taken to be liked together with the same others, and popular ones to vary more:
M = sqrt(c) K^1/2 G K^1/2, with K what is known of the items, (items, items) and positive semi-definite, and G symmetric with
independent normal entries, of variance 1 on the diagonal and 1/2 beside it. The noise is s G', G' of the same law, which no
rotation of the items changes. So along K's own directions, of eigenvalues k, every coefficient of the noised sum speaks for
itself, and the mean of M given it is

    c k_i k_j / (c k_i k_j + s^2)  times that coefficient;

c makes the noised sum most likely (empirical Bayes; Efron 2010, "Large-Scale Inference", chapter 1). The positive semi-definite
part of that mean is given as factors.

Keeping the eigenvalues beyond the noise's edge instead (`shared/preferences/denoising.py`) asks nothing of the items, and loses
what lies within it: of 1,024 items and noise .61, sums below 14 in any direction. NDCG@10, one draw of the noise, by that rule
and by this one, K from words that items have in common, own models in brackets. Anime dealt to 64 platforms (8 of them),
epsilon 8: fused .176 and .191 (.116), global .171 and .199; dealt to 8 (3 of them), epsilon 2: fused .200 and .211 (.201), global
.130 and .166. Films dealt to 8, epsilon 8, two seeds: fused .106 and .110 (.104), .098 and .103 (.094); global .094 and .091,
.091 and .089.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from numpy.typing import NDArray

from shared.base.errors import InputError
from shared.preferences.denoising import preference_factors

Floats = NDArray[np.float64]

MOST_FACTORS = 256
"""Factors of a posterior mean, at most. Fused, with 128, 256 and 511: .218, .226 and .225 on anime dealt to 8 (2 of them, epsilon
8), .176, .181 and .183 dealt to 64 (5 of them); in 18, 20 and 28, and in 11, 15 and 29 seconds of processor."""
_SCALES = np.exp(np.linspace(-8.0, 12.0, 41))
"""Of c, against the noise."""
_SEEN = 1024
"""Directions by whose coefficients c is chosen; of more, every second, third, ..."""
_LEAST = 1e-12
_DENOISED, _ITSELF = 0.2, 0.3


def likeness_kernel(noised: Floats, cosines: Floats, *, noise: float) -> Floats:
    """K: what items vary by together, by their texts, by what stands out of the noise, and each by itself.

    Pairs of it are cosines of texts + 0.2 x cosines of the denoised factors (`shared/preferences/denoising.py`) + 0.3 on the
    diagonal, times the roots of both popularities. The second part is for catalogues whose words say little. NDCG@10 of the
    global model at epsilon 8 and 2 with 0, 0.2 and 0.5 of it: films .089, .102, .100 and .057, .073, .072; anime .209, .208, .203
    and .158, .157, .151.

    Args:
        noised: As `posterior_factors`; its diagonal is popularity.
        cosines: (items, items), positive semi-definite, 1 or 0 on the diagonal.
        noise: As `posterior_factors`.

    Returns:
        (items, items), of the type of `noised`.
    """
    popular = np.maximum(np.diag(noised), 0.0) + max(noise, _LEAST)
    root = np.sqrt(popular / max(float(popular.mean()), _LEAST)) if len(popular) else popular
    factors = preference_factors(noised, noise=noise)
    unit = (factors / np.maximum(np.linalg.norm(factors, axis=0), np.float32(_LEAST))).astype(noised.dtype)
    kernel: Floats = cosines.astype(noised.dtype) + _DENOISED * (unit.T @ unit)
    kernel[np.diag_indices(len(kernel))] += _ITSELF
    kernel *= root[:, None] * root
    return kernel


def posterior_factors(noised: Floats, cosines: Floats, *, noise: float) -> NDArray[np.float32]:
    """Factors F, float32 (rank, items): F'F is the positive semi-definite part of the posterior mean; the strongest first.

    Args:
        noised: Symmetric, (items, items); float32 or float64, and what is computed is of that type.
        cosines: Of what is known of the items beside the sum, as `likeness_kernel`.
        noise: Standard deviation of the diagonal's noise, sqrt(2) times that of each pair; 0: the sum is exact.

    Raises:
        InputError: a number is not finite.

    | given | result |
    |---|---|
    | no item | shape (0, 0) |
    | zeros | no factor, shape (0, items) |
    | noise 0 | the positive semi-definite part of the sum itself |
    | NaN or infinity | `InputError` |
    """
    if not (np.isfinite(noised).all() and np.isfinite(cosines).all()):
        raise InputError("a sum of preferences holds numbers that are not finite", do="pull the model again")
    if not noise or not len(noised):
        return _factors(noised)
    kernel = likeness_kernel(noised, cosines, noise=noise)
    found, directions = scipy.linalg.eigh(kernel, overwrite_a=True, check_finite=False)
    eigenvalues = np.maximum(found.astype(np.float64), _LEAST)
    coefficients = directions.T @ noised @ directions
    scale = _likeliest_scale(coefficients, eigenvalues, noise=noise)
    root = eigenvalues.astype(noised.dtype)
    expected = np.outer(scale * root, root)
    expected /= expected + noised.dtype.type(noise**2)
    expected *= coefficients
    return _factors(directions @ expected @ directions.T)


def _likeliest_scale(coefficients: Floats, eigenvalues: Floats, *, noise: float) -> float:
    """c, by the likelihood of the coefficients: normal, of variance c k_i k_j + s^2 (half of it beside the diagonal)."""
    # From the largest on, so that what is left out is like what is not.
    some = np.arange(len(eigenvalues) - 1, -1, -max(1, -(-len(eigenvalues) // _SEEN)))
    rows, columns = np.triu_indices(len(some))
    squares = coefficients[np.ix_(some, some)][rows, columns].astype(np.float64) ** 2
    squares[rows != columns] *= 2.0
    products = eigenvalues[some][rows] * eigenvalues[some][columns]
    scales = _SCALES * noise**2 / float(eigenvalues.mean()) ** 2

    def likelihood(scale: float) -> float:
        variance = scale * products + noise**2
        return -float(np.log(variance).sum() + (squares / variance).sum())

    return float(max(scales, key=likelihood))


def _factors(matrix: Floats) -> NDArray[np.float32]:
    """Of the positive semi-definite part of a symmetric matrix."""
    # Rounding leaves eigenvalues of about this size where the matrix has none.
    least = max(float(np.abs(matrix).max(initial=0.0)) * len(matrix) * 1e-9, np.finfo(np.float32).tiny)
    count = len(matrix)
    if not count:
        return np.zeros((0, 0), np.float32)
    largest = (max(0, count - MOST_FACTORS), count - 1)
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=largest, check_finite=False)
    kept = np.flatnonzero(values > least)[::-1]
    factors: NDArray[np.float32] = (np.sqrt(values[kept])[:, None] * vectors[:, kept].T).astype(np.float32)
    return factors
