"""The fixed factors between which Fed-SB's r x r matrix stands: the change of a map is alpha / r * B R A.

A (r x d) has the top r right singular vectors of the frozen weight W as rows, B (k x r) the left ones as columns, each in
one length (LoRA-XS, Balazy et al. 2024; Fed-SB itself takes the SVD of a first gradient instead, which is of users' data
and would have to be noised and charged). The head has no frozen weight: random orthonormal factors from the seed.

Every party makes them from the backbone and the seed, so they are never sent. Singular vectors are unique but for their
sign, which is fixed here by their largest entry; the SVD is in float64, so that processors agree far below float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.adapter import HEAD, maps_of
from shared.backbone import Backbone
from shared.settings import Settings

_ROW = 1 / np.sqrt(3)
"""Norm of a row of A: as PEFT's uniform start has it."""


def core_factors(settings: Settings, backbone: Backbone) -> dict[str, NDArray[np.float32]]:
    """A and B of every trained map, float32.

    A column of B has norm sqrt(k / r): then a step of Adam on R, whose entries all move by the learning rate, moves the
    product as far as the same step on a B of its own would (`ffa`), and one learning rate does for both.
    """
    rank = settings.model.rank
    factors: dict[str, NDArray[np.float32]] = {}
    for index, (name, (out, inner)) in enumerate(maps_of(backbone.shape, settings.model).items()):
        if name == HEAD:
            random = np.random.default_rng([settings.seed, index])
            left, right = random.normal(size=(out, min(rank, out))), random.normal(size=(inner, min(rank, inner)))
            u, v = np.linalg.qr(left)[0], np.linalg.qr(right)[0].T
        else:
            u, _, v = np.linalg.svd(backbone.weights[f"{name}.weight"].double().numpy(), full_matrices=False)
        u, v = _signed(u[:, :rank], v[:rank])
        factors[f"{name}.lora_A"] = _padded(v * _ROW, (rank, inner))
        factors[f"{name}.lora_B"] = _padded(u * np.sqrt(out / rank), (out, rank))
    return factors


def folded(core: Mapping[str, NDArray[np.float32]], factors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The plain adapter that a core stands for: A' = R A and the same B, at the same scale."""
    plain = dict(factors)
    for name, matrix in core.items():
        a = name.removesuffix(".lora_R") + ".lora_A"
        plain[a] = (matrix.astype(np.float64) @ factors[a]).astype(np.float32)
    return plain


def _signed(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    signs = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    return u * signs, v * signs[:, None]


def _padded(matrix: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Zeros where a rank is larger than the map: those rows of R then have no effect."""
    whole = np.zeros(shape, np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole
