"""No small input of another party makes a process large, slow, or fall over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MOST = 256 << 20
"""Bytes by which a process may grow over any of them; the largest inputs have 64 MB themselves."""


def test_all_of_them() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.memory_bombs"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) > 70
    assert [bomb for bomb in found if bomb["outcome"] == "crashed"] == [], run.stderr[-4000:]
    assert [bomb for bomb in found if bomb["growth"] > MOST] == []
    assert [bomb for bomb in found if bomb["seconds"] > 20] == []
    # What is accepted is well-formed, and small.
    assert {bomb["name"] for bomb in found if bomb["outcome"] == "accepted"} <= {"receipts: keys", "tensors: many"}
