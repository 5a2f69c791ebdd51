"""Resident memory of the coordinator's processes, from /proc."""

from __future__ import annotations

from pathlib import Path


def resident(pid: int) -> dict[str, float]:
    """MiB of resident memory of the coordinator's processes."""
    found = {"superlink": _rss(pid), "serverapp": 0.0}
    waiting = child_processes(pid)
    while waiting:
        child = waiting.pop()
        waiting += child_processes(child)
        try:
            name = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"flwr-serverapp" in name:
            found["serverapp"] = max(found["serverapp"], _rss(child))
    return found


def child_processes(pid: int) -> list[int]:
    """Processes that a process has started; none where it is gone."""
    try:
        return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    except OSError:
        return []


def _rss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)
