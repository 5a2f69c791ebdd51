"""Runs a module in this process as `python -m` does, and writes down how much of the GPU's memory it took.

    python -m simulations.benchmarks.gpu.step MEMORY MODULE [OPTIONS]

MEMORY is a file that gets JSON at the end, also when the step is stopped (SIGTERM).
"""

from __future__ import annotations

import ctypes
import json
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


class DeviceMemory:
    """The most that torch held on the GPU, however often the module starts its own count anew."""

    def __init__(self) -> None:
        self._most = 0

    def watch(self, torch: Any) -> None:
        """From now on."""
        self._cuda, self._reset = torch.cuda, torch.cuda.reset_peak_memory_stats
        torch.cuda.reset_peak_memory_stats = self._noted

    def _noted(self, *arguments: Any) -> None:
        self.most()
        self._reset(*arguments)

    def most(self) -> int | None:
        """Bytes in tensors at once, at most; None where torch sees no GPU or did not use it."""
        if not self._cuda.is_initialized():
            return None
        self._most = max(self._most, self._cuda.max_memory_allocated())
        return self._most


def main() -> None:
    """Run it."""
    memory, module, *options = sys.argv[1:]
    # Whatever ends the runner, even SIGKILL, ends the step: nothing is left behind on the GPU.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    import torch

    watched = DeviceMemory()
    watched.watch(torch)
    sys.argv = [module, *options]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        Path(memory).write_text(json.dumps({"peak_device_bytes": watched.most()}), encoding="utf-8")


if __name__ == "__main__":
    main()
