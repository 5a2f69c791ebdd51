"""How benchmarks are reported: sides beside one of them, several seeds in one cell; for a person or for a machine."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def report(
    results: Mapping[str, Mapping[str, Any]], *, base: str, sides: str, title: str, facts: Mapping[str, Any], as_json: bool
) -> None:
    """Print seconds and peak memory of every side, and how many times faster than the base it is.

    Args:
        results: Of `simulations.benchmarks.training.measure`.
        sides: What the sides are; heads their column.
        facts: What was measured; the JSON holds it beside the sides.
    """
    found = {
        name: {**result, "ratio": round(results[base]["seconds"] / result["seconds"], 3)} for name, result in results.items()
    }
    if as_json:
        json.dump({**facts, "sides": found}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(sides, title=title)
    for column in ("ms", "peak MiB", "ratio"):
        table.add_column(column, justify="right")
    for name, result in found.items():
        table.add_row(name, f"{1000 * result['seconds']:.1f}", f"{result['peak_mib']:.0f}", f"{result['ratio']:.2f}x")
    Console().print(table)


def spread(values: Sequence[float]) -> str:
    """Median (least-greatest).

    >>> spread([0.07, 0.05, 0.051]), spread([0.05]), spread([])
    ('0.051 (0.050-0.070)', '0.050', '')
    """
    if not values:
        return ""
    middle = f"{statistics.median(values):.3f}"
    return f"{middle} ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else middle
