"""What the C library does with freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from shared.layers import malloc_tuning as heap

FAULTS = """
import resource
import torch
from shared.layers.malloc_tuning import keep, set_thresholds

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for turn in range(4):
        blocks = [torch.ones(5 << 20) for _ in range(10)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert set_thresholds(mmap=1 << 17, trim=1 << 17)
print(faults())
assert keep()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_what_a_step_frees_the_next_one_has_without_a_fault() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100  # 200,000 of 4 KiB, 400 of huge ones
    assert kept < given_back / 10


def test_another_c_library_goes_on_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not heap.set_thresholds(mmap=1 << 20, trim=1 << 20)
