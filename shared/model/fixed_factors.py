"""The fixed factors around Fed-SB's r x r matrix: the change of a map is alpha / r * B R A.

A (r x d) and B (k x r) hold singular vectors of the frozen weight W, half of them those with the largest singular values and
half those with the smallest. They need no data: Fed-SB itself takes the SVD of a first gradient (LoRA-SB), which is of users'
rows and would have to be noised and charged; LoRA-XS (Balazy et al. 2024) takes the largest alone. Measured on MiniLM and the
generated world's three platforms, the share of the first gradient's energy (query and value, top two layers) that lies between A
and B, and beside it what `ffa` at rank 8 can follow (1.3 %):

| rank | largest | smallest | half and half | random |
|---|---|---|---|---|
| 8 | 0.8 % | 0.7 % | 1.1 % | 0.03 % |
| 32 | 1.8 % | 4.0 % | 5.0 % | 0.7 % |
| 64 | 3.5 % | 9.0 % | 10.1 % | 2.6 % |

The head has no frozen weight: there they are random and orthonormal, from the seed. Every party makes them by itself, so they
are never sent. A singular vector is unique but for its sign, which is fixed here by its largest entry; the SVD is in float64,
so that processors agree far below float32, and a weight whose singular values are too close for that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import InputError
from shared.base.settings import Settings
from shared.model.adapter import HEAD, maps_of
from shared.model.backbone import Backbone

_ROW = 1 / np.sqrt(3)
"""Norm of a row of A: as PEFT's uniform start has it."""
_APART = 1e-9
"""Least gap of two singular values over the largest: an SVD's rounding, 1e-16, then turns a vector by 1e-7 at most."""


def core_factors(settings: Settings, backbone: Backbone) -> dict[str, NDArray[np.float32]]:
    """A and B of every trained map, float32.

    A column of B has norm sqrt(k / r): then a step of Adam on R, whose entries all move by the learning rate, moves the
    product as far as the same step on a B of its own would (`ffa`), and one learning rate does for both.

    Raises:
        InputError: the weights do not say which directions those are.
    """
    rank = settings.model.rank
    most = (rank + 1) // 2
    factors: dict[str, NDArray[np.float32]] = {}
    for index, (name, (out, inner)) in enumerate(maps_of(backbone.shape, settings.model).items()):
        if name == HEAD:
            random = np.random.default_rng([settings.seed, index])
            left, right = random.normal(size=(out, min(rank, out))), random.normal(size=(inner, min(rank, inner)))
            u, v = np.linalg.qr(left)[0], np.linalg.qr(right)[0].T
        else:
            u, values, v = np.linalg.svd(backbone.weights[f"{name}.weight"].double().numpy(), full_matrices=False)
            ends = np.unique([*range(min(most, len(values))), *range(max(0, len(values) - (rank - most)), len(values))])
            _require_apart(values, ends, name)
            u, v = u[:, ends], v[ends]
        u, v = _signed(u, v)
        factors[f"{name}.lora_A"] = _padded(v * _ROW, (rank, inner))
        factors[f"{name}.lora_B"] = _padded(u * np.sqrt(out / rank), (out, rank))
    return factors


def folded(core: Mapping[str, NDArray[np.float32]], factors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The plain adapter that is equivalent to a core: A' = R A and the same B, at the same scale."""
    plain = dict(factors)
    for name, matrix in core.items():
        a = name.removesuffix(".lora_R") + ".lora_A"
        plain[a] = (matrix.astype(np.float64) @ factors[a]).astype(np.float32)
    return plain


def _require_apart(values: NDArray[np.float64], chosen: NDArray[np.int64], name: str) -> None:
    """Vectors of equal singular values are any basis of a plane: two processors would choose two."""
    gaps = -np.diff(values, prepend=np.inf, append=-np.inf)
    nearest = np.minimum(gaps[:-1], gaps[1:])[chosen]
    if not (nearest > _APART * values[0]).all():
        raise InputError(
            f"{name}.weight has singular values that are equal, so parties could not agree on its directions",
            where="strategy fedsb",
            do="choose ffa, or another backbone",
        )


def _signed(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    signs = np.sign(u[np.abs(u).argmax(0), np.arange(u.shape[1])])
    return u * signs, v * signs[:, None]


def _padded(matrix: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Zeros where a rank is larger than the map: those rows of R then have no effect."""
    whole = np.zeros(shape, np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole
