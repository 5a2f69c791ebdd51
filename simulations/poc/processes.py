"""The processes of a folder's federation, found in /proc by what they are, so that no list of them can be lost or go stale.

A process belongs to a folder if
- a proof of concept started it there, and left the folder in its environment (`MARK`);
- Flower started it for a coordinator or a messenger of the folder (`FLWR_HOME`);
- its command line is that of Fedfuse's server, client, worker or messenger, of a folder inside. A worker's environment cannot be
  looked at, by design, and people start these by themselves as well.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.base.errors import FedfuseError, InputError

MARK = "FEDFUSE_POC"
"""Environment variable: the folder of the proof of concept that a process belongs to."""
PROC = Path("/proc")
GRACE = 20.0
"""Seconds that processes get to stop by themselves: a platform's client gives its own two 10 s each."""
_SERVICES = {
    ("server", "start"): "server",
    ("client", "start"): "client",
    ("client", "worker"): "worker",
    ("client", "node"): "node",
}
_MESSENGER = ["-m", "client.supernode.process"]
_LAUNCHER = ["-m", "server.scheduling.detached"]


@dataclass(frozen=True, kw_only=True)
class RunningProcess:
    """A process of a federation's folder.

    Args:
        part: server, client, worker, messenger, run... or Flower's own name of it.
        place: Name of the coordinator's or platform's folder; '' where it is of none.
        seconds: Since it was started.
    """

    pid: int
    part: str
    place: str
    seconds: float

    @property
    def keeps_others(self) -> bool:
        """Whether it ends its own processes on SIGTERM."""
        return self.part in ("server", "client", "run")


def require_proc() -> None:
    """Check that this system shows its processes as Linux does.

    Raises:
        InputError: it does not.
    """
    if not (PROC / "self" / "stat").exists():
        raise InputError(
            "this system has no /proc", where="fedfuse poc", do="use Linux, or: fedfuse simulate, which runs everywhere"
        )


def processes_in(root: Path) -> list[RunningProcess]:
    """This user's processes that belong to the federation in `root`, oldest first; not the calling one.

    Args:
        root: Absolute.
    """
    found = []
    for pid in _pids():
        with suppress(OSError, ValueError, IndexError):  # it has just ended, or is another user's
            if (PROC / str(pid)).stat().st_uid in (os.getuid(), 0) and (one := _looked_at(pid, root)) is not None:
                found.append(one)
    return sorted(found, key=lambda one: -one.seconds)


def stop_processes(root: Path, *, grace: float = GRACE) -> int:
    """End every process in `root`: first those that end their own, then, after a while, by force. Returns how many there were.

    Raises:
        FedfuseError: one does not end.
    """
    seen: set[int] = set()
    end, force = time.monotonic() + grace, False
    told: set[int] = set()
    while running := processes_in(root):
        now = time.monotonic()
        if now > end:
            if force:
                left = ", ".join(f"{one.pid} ({one.part})" for one in running)
                raise FedfuseError(f"processes do not end: {left}", where=str(root), do="end them")
            end, force = now + grace, True
        keepers = [one for one in running if one.keeps_others] or running
        for one in running if force else keepers:
            if force or one.pid not in told:
                with suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL if force else signal.SIGTERM)
                told.add(one.pid)
        seen |= {one.pid for one in running}
        time.sleep(0.1)
    return len(seen)


def _pids() -> Iterator[int]:
    own = os.getpid()
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != own:
            yield int(entry.name)


def _looked_at(pid: int, root: Path) -> RunningProcess | None:
    place = PROC / str(pid)
    words = [word.decode("utf-8", "replace") for word in (place / "cmdline").read_bytes().split(b"\0")[:-1]]
    fields = (place / "stat").read_bytes().rpartition(b")")[2].split()
    if not words or fields[0] in (b"Z", b"X"):
        return None
    what = _service(words, place, root) or _marked(words, place, root)
    if what is None:
        return None
    up = float((PROC / "uptime").read_text(encoding="ascii").split()[0])
    seconds = up - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return RunningProcess(pid=pid, part=what[0], place=what[1], seconds=max(seconds, 0.0))


def _service(words: Sequence[str], process: Path, root: Path) -> tuple[str, str] | None:
    """(part, place) by the command line."""
    if list(words[1:3]) == _MESSENGER and len(words) > 3:
        folder = Path(str(json.loads(words[3])["folder"]))
        return ("messenger", folder.parent.name) if folder.is_relative_to(root) else None
    if list(words[1:3]) == _LAUNCHER and len(words) > 3:
        folder = Path(words[3])
        return ("launcher", folder.name) if folder.is_relative_to(root) else None
    after = _after_fedfuse(words)
    if len(after) < 3 or (part := _SERVICES.get((after[0], after[1]))) is None:
        return None
    folder = Path(after[2])
    if not folder.is_absolute():
        folder = Path(os.path.normpath((process / "cwd").readlink() / folder))
    return (part, folder.name) if folder.is_relative_to(root) else None


def _marked(words: Sequence[str], process: Path, root: Path) -> tuple[str, str] | None:
    """(part, place) by the environment that it was started with."""
    try:
        text = (process / "environ").read_bytes().decode("utf-8", "replace")
    except PermissionError:
        return None
    environment = dict(line.partition("=")[::2] for line in text.split("\0"))
    home = Path(environment.get("FLWR_HOME", "/"))
    if home.is_relative_to(root):
        return _flower_name(words), home.relative_to(root).parts[0]
    if environment.get(MARK) == str(root):
        after = _after_fedfuse(words)
        return (after[0] if after else Path(words[0]).name), ""
    return None


def _flower_name(words: Sequence[str]) -> str:
    return next((name for word in words[:4] if (name := Path(word).name).startswith(("flwr-", "flower-"))), Path(words[0]).name)


def _after_fedfuse(words: Sequence[str]) -> list[str]:
    """The words of a command of Fedfuse after its name: `python -m fedfuse ...`, `.../bin/fedfuse ...`."""
    for at in (1, 2):
        if len(words) > at and Path(words[at]).name == "fedfuse" and (at == 1 or words[at - 1] == "-m"):
            return list(words[at + 1 :])
    return []
