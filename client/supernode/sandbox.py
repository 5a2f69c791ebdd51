"""Shutting this process, and all that it starts, out of everything that it does not need: Landlock and seccomp.

The messenger's processes run the coordinator's code under some user of the platform's machine. A user of their own is the
classical wall; `confine` is one that needs no administrator, and that neither this process nor a child can undo. What it closes
depends on the kernel, and `wall` says it:

| closed | by | from Linux |
|---|---|---|
| opening, listing, making, removing files outside the named places; ptrace, /proc/PID/mem | Landlock 1 | 5.13 |
| TCP to and on ports that are not named | Landlock 4 | 6.7 |
| devices' ioctl | Landlock 5 | 6.10 |
| signals to processes outside, connections to abstract Unix sockets | Landlock 6 | 6.12 |
| every Unix socket, io_uring, System V and POSIX queues and memory, keyrings, TIOCSTI | seccomp (`seccomp.py`) | 4.14 |

Not closed by either: names, sizes and dates of files (`stat`), `chmod` and `flock` of this user's files, the ports that are named
at any address, and UDP. `landlock(7)` describes what the kernel promises.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from client.supernode import seccomp
from shared.base.errors import StorageError

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH, _NET_PORT = 1, 2
_NO_NEW_PRIVILEGES, _DUMPABLE = 38, 4

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FIRST_ABI = (1 << 13) - 1
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
"""Those that make sense for a file: 14 truncates, 15 controls a device. The kernel refuses the others for one."""
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1
_CAPABILITIES = 0x20080522
"""Version of the structures that capset(2) takes."""


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _NetPort(ctypes.Structure):
    _fields_ = [("allowed", ctypes.c_uint64), ("port", ctypes.c_uint64)]


@dataclass(frozen=True, kw_only=True)
class Wall:
    """What `confine` closes on this kernel.

    Args:
        landlock: Version of Landlock; 0 for none, and then nothing is closed.
        sockets: Whether seccomp closes Unix sockets, io_uring, System V memory and keyrings.
    """

    landlock: int
    sockets: bool

    def __bool__(self) -> bool:
        """Whether files and processes are closed: without that there is no cage."""
        return self.landlock > 0

    def __str__(self) -> str:
        """For a person: what the cage is made of, and what it leaves open."""
        if not self:
            return "not caged: this kernel has no Landlock"
        made = f"caged by Landlock {self.landlock}" + (" and seccomp" if self.sockets else "")
        return f"{made}; NOT closed by this kernel: {', '.join(self.open)}" if self.open else made

    @property
    def open(self) -> list[str]:
        """What this kernel leaves open that a newer one, or one with seccomp, would close."""
        missing = {
            "Unix sockets of this user's other processes": not self.sockets,
            "TCP to other ports, of this machine too": self.landlock < 4,
            "signals to this user's other processes": self.landlock < 6,
        }
        return [what for what, left in missing.items() if left]


def wall() -> Wall:
    """What `confine` would close, found without closing anything."""
    version = landlock_version()
    return Wall(landlock=version, sockets=version > 0 and seccomp.seccomp_available())


def landlock_version() -> int:
    """Version of Landlock that this kernel has; 0 where it has none."""
    if sys.platform != "linux":
        return 0
    return max(int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))), 0)


def confine(
    *, read: Iterable[Path], write: Iterable[Path], connect: Iterable[int] | None = None, listen: Iterable[int] = ()
) -> Wall:
    """From now on, this process may read and run files below `read`, and do anything below `write`; nothing else.

    Places that do not exist are left out. Descriptors that are open stay open. What an administrator's process could do
    beyond that by its capabilities, it gives up.

    Args:
        connect, listen: TCP ports, of any address; `connect=None` leaves TCP as it is.

    Returns:
        What was closed. Where the kernel has no Landlock, nothing was.

    Raises:
        StorageError: the kernel has Landlock or seccomp but refused; nothing may be assumed.
    """
    found = wall()
    version = found.landlock
    if version == 0:
        return found
    rights = _FIRST_ABI | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    ruleset = _Ruleset(
        files=rights,
        net=_BIND_TCP | _CONNECT_TCP if version >= 4 and connect is not None else 0,
        scoped=_SIGNALS | _ABSTRACT_SOCKETS if version >= 6 else 0,
    )
    # Older kernels know a shorter structure, and refuse a longer one with anything in its tail; ours is 0 there.
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    libc = _libc()
    descriptor = int(libc.syscall(_CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0)))
    if descriptor < 0:
        raise _refused("landlock_create_ruleset")
    try:
        for places, allowed in ((read, rights & _READ), (write, rights)):
            for place in places:
                _allow(libc, descriptor, place, allowed)
        if ruleset.net:
            for ports, allowed in ((connect or (), _CONNECT_TCP), (listen, _BIND_TCP)):
                for port in ports:
                    _add(libc, descriptor, _NET_PORT, _NetPort(allowed=allowed, port=port), f"port {port}")
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise _refused("prctl")
        if libc.syscall(_RESTRICT, ctypes.c_int(descriptor), ctypes.c_uint32(0)) != 0:
            raise _refused("landlock_restrict_self")
        _drop_capabilities(libc)
    finally:
        os.close(descriptor)
    if found.sockets:
        seccomp.install_filter()
    return found


def of_python() -> list[Path]:
    """What any Python process needs to read: the interpreter, its packages, the system's libraries and settings."""
    named = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/run/systemd/resolve", "/sys/fs/cgroup"]
    # Not the folders of processes: command lines may hold passwords, and a worker's memory and time depend on its rows.
    named += [f"/proc/{name}" for name in ("cpuinfo", "filesystems", "meminfo", "stat", "sys", "version")]
    named += [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    # An environment may borrow another one's packages; other folders on the path may hold anything.
    named += [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    # Of Fedfuse itself the code alone: beside an editable installation anything may lie.
    root = Path(__file__).resolve().parents[2]
    own = [root / name for name in ("client", "server", "shared", "strategies", "simulations", "fedfuse.py")]
    return [*(Path(name) for name in dict.fromkeys(named)), *own]


def harmless_devices() -> list[Path]:
    """Devices that programs write to and read from without harm.

    Neither the terminal, into which one can type, nor /dev/shm, where other processes of this user keep memory.
    """
    return [Path(f"/dev/{name}") for name in ("null", "zero", "urandom", "random")]


def _allow(libc: ctypes.CDLL, ruleset: int, place: Path, allowed: int) -> None:
    try:
        parent = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(allowed=allowed if place.is_dir() else allowed & _FILE_RIGHTS, parent=parent)
        _add(libc, ruleset, _PATH_BENEATH, rule, str(place))
    finally:
        os.close(parent)


def _add(libc: ctypes.CDLL, ruleset: int, kind: int, rule: ctypes.Structure, what: str) -> None:
    if libc.syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(kind), ctypes.byref(rule), ctypes.c_uint32(0)) != 0:
        raise _refused(f"landlock_add_rule for {what}")


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    # An administrator may read the environment of any process by CAP_PERFMON, which Landlock does not ask about.
    # Without new privileges (above), no program that is run later gets them back.
    head = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if libc.capset(ctypes.byref(head), ctypes.byref((ctypes.c_uint32 * 6)())) != 0:
        raise _refused("capset")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _refused(call: str) -> StorageError:
    return StorageError(
        f"{call}: {os.strerror(ctypes.get_errno())}", where="Landlock", do="run the messenger under a user of its own"
    )


def close_to_others() -> None:
    """Let no other process of this user look into this one: its memory, its environment, its open files.

    Raises:
        StorageError: the kernel refused.
    """
    if sys.platform == "linux" and _libc().prctl(_DUMPABLE, 0, 0, 0, 0) != 0:
        raise _refused("prctl")
