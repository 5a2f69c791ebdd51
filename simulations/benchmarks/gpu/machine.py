"""What the machine is: processor, memory, and where torch is at hand, its version, the GPU and the driver. Prints JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def processor() -> str:
    """Its name as Linux has it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver() -> str | None:
    """Version of NVIDIA's driver, or None where there is none or it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 - fixed words
    except subprocess.TimeoutExpired:
        return None
    return said.stdout.split("\n")[0].strip() or None if said.returncode == 0 else None


def machine() -> dict[str, Any]:
    """All of it; what torch alone knows is left out where torch cannot be imported."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "driver": driver(),
        "torch": None,
        "gpu": None,
    }
    try:
        import torch
    except (ImportError, OSError) as error:
        return found | {"torch_error": str(error)}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"gpu": card.name, "gpu_memory_gib": round(card.total_memory / 2**30, 1)}
        found |= {"gpu_capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count}
    return found


if __name__ == "__main__":
    print(json.dumps(machine()))
