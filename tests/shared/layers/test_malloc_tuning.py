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


HELD = """
from pathlib import Path
import numpy as np
from shared.layers.malloc_tuning import give_back, keep

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) >> 8  # MiB

def freed():
    # Of another size each, with something small behind it that stays.
    for turn in range(8):
        block = np.ones((40 + turn) << 17)
        stays.append(np.ones(64))
        del block

stays, before = [], held()
assert keep()
freed()
kept = held() - before
assert give_back()
print(kept, held() - before)
freed()
print(0, held() - before)
assert keep()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_after_training_large_blocks_leave_nothing_behind() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True, timeout=120)
    (kept, after), (_, later) = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert kept >= 39 and after < kept / 2 and later < kept / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_what_a_step_frees_the_next_one_has_without_a_fault() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100  # 200,000 of 4 KiB, 400 of huge ones
    assert kept < given_back / 10


def test_another_c_library_goes_on_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not heap.set_thresholds(mmap=1 << 20, trim=1 << 20)
