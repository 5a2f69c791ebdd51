"""How many examples Hypothesis draws."""

from __future__ import annotations

import os


def examples(usual: int) -> int:
    """So many in every run, and `FEDFUSE_EXAMPLES` times as many where that is set.

    `FEDFUSE_EXAMPLES=20 python -m pytest tests/client/sources/test_locality.py` looks for what is rare.
    """
    return usual * int(os.environ.get("FEDFUSE_EXAMPLES", "1"))
