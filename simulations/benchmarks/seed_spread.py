"""Several seeds' figures in one cell of a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> str:
    """Median (least-greatest).

    >>> spread([0.07, 0.05, 0.051]), spread([0.05]), spread([])
    ('0.051 (0.050-0.070)', '0.050', '')
    """
    if not values:
        return ""
    middle = f"{statistics.median(values):.3f}"
    return f"{middle} ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else middle
