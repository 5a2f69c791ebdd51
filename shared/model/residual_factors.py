"""Residual factors: frozen low-rank maps beside the adapter, for what two averaged factors cannot hold.

A map's change is alpha / r * (B A + B' A') with A' = `<map>.residual_A` (R x d) and B' = `<map>.residual_B` (k x R), of any
R up to min(k, d), which may differ from map to map. Nothing trains them on a platform; the coordinator sends them with the
adapter. They have the adapter's scale, so that stacking [A; A'] and [B, B'] is the whole map (`merged`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.base.errors import ProtocolError
from shared.model.adapter import Layout, require_layout
from shared.model.low_rank_sums import ProductSum
from shared.protocol.messages import Arrays

Adapter = dict[str, NDArray[np.float32]]


def is_residual(name: str) -> bool:
    """Whether a tensor is a residual factor."""
    return name.endswith((".residual_A", ".residual_B"))


def maps_in(arrays: Mapping[str, object]) -> list[str]:
    """The maps that have an A and a B, in order.

    >>> maps_in({"head.lora_A": 0, "head.lora_B": 0, "head.residual_A": 0})
    ['head']
    """
    return [name.removesuffix(".lora_A") for name in arrays if name.endswith(".lora_A")]


def split_residual(arrays: Arrays) -> tuple[Adapter, Adapter]:
    """The adapter proper, and its residual."""
    return (
        {name: array for name, array in arrays.items() if not is_residual(name)},
        {name: array for name, array in arrays.items() if is_residual(name)},
    )


def require_with_residual(arrays: Arrays, layout: Layout, *, where: str) -> None:
    """Check an adapter that may have a residual: names, shapes, sizes, and every value finite.

    Raises:
        ProtocolError: anything differs.
    """
    adapter, residual = split_residual(arrays)
    require_layout(adapter, layout, where=where)
    wanted: dict[str, tuple[int, int]] = {}
    for name in maps_in(layout):
        inner, out = layout[f"{name}.lora_A"][1], layout[f"{name}.lora_B"][0]
        if f"{name}.residual_A" in residual:
            shape = residual[f"{name}.residual_A"].shape
            rank = shape[0] if len(shape) == 2 else 0
            if not 1 <= rank <= min(out, inner):
                raise ProtocolError(f"the residual of {name} has rank {rank} of at most {min(out, inner)}", where=where)
            wanted[f"{name}.residual_A"], wanted[f"{name}.residual_B"] = (rank, inner), (out, rank)
    require_layout(residual, wanted, where=where)


def added(residual: Arrays, name: str, more: ProductSum) -> Adapter:
    """The residual of one map with more added: its two factors in float32, none where the sum is zero."""
    if f"{name}.residual_A" in residual:
        more.add(residual[f"{name}.residual_B"], residual[f"{name}.residual_A"])
    b, a = more.factors()
    if not b.shape[1]:
        return {}
    return {f"{name}.residual_A": a.astype(np.float32), f"{name}.residual_B": b.astype(np.float32)}


def merged(arrays: Arrays) -> Adapter:
    """Adapter and residual as one adapter, whose ranks may differ from map to map; the scale stays as it was.

    A pair that adds nothing (a B of zeros) is left out where there is a residual for the map.
    """
    adapter, residual = split_residual(arrays)
    result = dict(adapter)
    for name in maps_in(adapter):
        if f"{name}.residual_A" not in residual:
            continue
        a, b = [residual[f"{name}.residual_A"]], [residual[f"{name}.residual_B"]]
        if adapter[f"{name}.lora_B"].any():
            a.insert(0, adapter[f"{name}.lora_A"])
            b.insert(0, adapter[f"{name}.lora_B"])
        result[f"{name}.lora_A"] = np.concatenate(a, axis=0)
        result[f"{name}.lora_B"] = np.concatenate(b, axis=1)
    return result


def change_norm(before: Arrays, after: Arrays) -> float:
    """L2 norm of what an adapter's maps, residuals included, have changed by, and tensors without a partner; new ones, from 0.

    Of the products B A, since some strategies change the rank, and other factors may be the same map.

    >>> change_norm({"a": np.zeros(2)}, {"a": np.array([3.0, 0.0]), "b": np.array([4.0])})
    5.0
    >>> one = {"x.lora_A": np.ones((1, 2)), "x.lora_B": np.ones((3, 1))}
    >>> change_norm(one, {"x.lora_A": np.ones((2, 2)), "x.lora_B": np.full((3, 2), 0.5)})
    0.0
    """
    now, then = merged(after), merged(before)
    squares = 0.0
    for name in maps_in(now):
        a, b = f"{name}.lora_A", f"{name}.lora_B"
        if b not in now:
            continue
        change = ProductSum(now[b].shape[0], now[a].shape[1])
        change.add(now.pop(b), now.pop(a))
        if b in then:
            change.add(then[b], then[a], weight=-1.0)
        squares += float(np.square(change.spectrum().values).sum())
    for name, value in now.items():
        squares += float(np.square(np.asarray(value, np.float64) - then.get(name, np.float32(0.0))).sum())
    return math.sqrt(squares)
