"""How many examples Hypothesis draws."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """So many, and `FEDFUSE_EXAMPLES` times as many where that is set.

    `FEDFUSE_EXAMPLES=20 python -m pytest tests/client/sources/test_locality.py` looks for what is rare. Continuous integration
    takes half of them: it draws the same ones every time, where people's machines draw new ones.
    """
    times = float(os.environ.get("FEDFUSE_EXAMPLES") or ("0.5" if os.environ.get("CI") else "1"))
    return max(1, round(usual * times))
