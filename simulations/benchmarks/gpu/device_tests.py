"""`tests/on_a_device.py` on a device; prints JSON of the outcomes so far after every test, so that a cut loses no outcome.

python -m simulations.benchmarks.gpu.device_tests DEVICE [PYTEST OPTIONS]
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any, TextIO

import pytest


class Outcomes:
    """Counts them as pytest reports them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.passed, self.skipped = 0, 0
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A hook of pytest's: of a phase of a test."""
        if report.failed:
            self.failed.append(report.nodeid.partition("::")[2])
        elif report.skipped:
            self.skipped += 1
        elif report.when == "call":
            self.passed += 1
        if report.when == "teardown":
            self.say()

    def say(self) -> None:
        """Print what is known on a line of its own."""
        found = {"passed": self.passed, "skipped": self.skipped, "failed": self.failed}
        print(json.dumps(found), file=self._out, flush=True)


def main() -> None:
    """Run the tests."""
    device, *options = sys.argv[1:]
    os.environ["FEDFUSE_DEVICE"] = device
    outcomes = Outcomes(sys.stdout)
    words = ["-q", "-p", "no:cacheprovider", "tests/on_a_device.py", *options]
    with redirect_stdout(sys.stderr):
        code = pytest.main(words, plugins=[outcomes])
    outcomes.say()
    sys.exit(int(code))


if __name__ == "__main__":
    main()
