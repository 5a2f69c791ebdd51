"""Residual factors: what another party may send, how they add up, and what represents a whole map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.base.errors import ProtocolError
from shared.model.low_rank_sums import ProductSum
from shared.model.residual_factors import added, is_residual, maps_in, merged, require_with_residual, split_residual

LAYOUT = {"x.lora_A": (2, 5), "x.lora_B": (4, 2), "head.lora_A": (2, 3), "head.lora_B": (3, 2)}


def arrays(**residual: tuple[int, ...]) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = LAYOUT | {f"x.residual_{key}": shape for key, shape in residual.items()}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("residual", [{}, {"A": (1, 5), "B": (4, 1)}, {"A": (4, 5), "B": (4, 4)}])
def test_what_fits_passes(residual: dict[str, tuple[int, ...]]) -> None:
    require_with_residual(arrays(**residual), LAYOUT, where="test")
    adapter, rest = split_residual(arrays(**residual))
    assert set(adapter) == set(LAYOUT) and all(map(is_residual, rest))
    assert maps_in(arrays(**residual)) == ["x", "head"]


@pytest.mark.parametrize(
    "residual",
    [
        {"A": (1, 5)},
        {"B": (4, 1)},
        {"A": (5, 1), "B": (1, 4)},
        {"A": (2, 5), "B": (4, 1)},
        {"A": (5, 5), "B": (4, 5)},
        {"A": (0, 5), "B": (4, 0)},
        {"A": (1, 6), "B": (4, 1)},
        {"A": (5,), "B": (4, 1)},
        {"A": (), "B": ()},
        {"A": (1, 5), "B": (4, 1), "C": (1, 1)},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(residual: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ProtocolError):
        require_with_residual(arrays(**residual), LAYOUT, where="test")


def test_a_value_that_is_not_finite_is_refused() -> None:
    bad = arrays(A=(1, 5), B=(4, 1))
    bad["x.residual_A"][0, 0] = np.inf
    with pytest.raises(ProtocolError, match="not finite"):
        require_with_residual(bad, LAYOUT, where="test")


def product(found: dict[str, Any], name: str) -> np.ndarray:
    return found[f"{name}.lora_B"].astype(float) @ found[f"{name}.lora_A"]


def test_a_merged_map_is_adapter_and_residual_together() -> None:
    whole = arrays(A=(3, 5), B=(4, 3))
    one = merged(whole)
    assert one["x.lora_A"].shape == (5, 5) and one["x.lora_B"].shape == (4, 5)
    np.testing.assert_allclose(
        product(one, "x"), product(whole, "x") + whole["x.residual_B"].astype(float) @ whole["x.residual_A"], atol=1e-5
    )
    assert (one["head.lora_A"] == whole["head.lora_A"]).all()
    whole["x.lora_B"][:] = 0.0
    assert merged(whole)["x.lora_A"].shape == (3, 5)  # a pair that adds nothing is left out


def test_residuals_add_up_and_vanish() -> None:
    whole = arrays(A=(3, 5), B=(4, 3))
    was = whole["x.residual_B"].astype(float) @ whole["x.residual_A"]
    more = ProductSum(4, 5)
    more.add(whole["x.lora_B"], whole["x.lora_A"])
    after = added(whole, "x", more)
    np.testing.assert_allclose(after["x.residual_B"].astype(float) @ after["x.residual_A"], was + product(whole, "x"), atol=1e-5)
    assert after["x.residual_A"].dtype == np.float32
    away = ProductSum(4, 5)
    away.add(whole["x.residual_B"], whole["x.residual_A"], weight=-1.0)
    assert added(whole, "x", away) == {}
