"""What the C library does with freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from shared import heap

FAULTS = """
import resource, sys
import torch
from shared.heap import keep

if sys.argv[1] == "kept":
    assert keep()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(6):
    if turn == 2:
        before = faults()
    blocks = [torch.ones(5 << 20) for _ in range(10)]
    del blocks
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_what_a_step_frees_the_next_one_has_without_a_fault() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120)
        return int(done.stdout)

    assert faults("kept") < faults("by itself") / 4


def test_another_c_library_goes_on_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not heap.set_thresholds(mmap=1 << 20, trim=1 << 20)
