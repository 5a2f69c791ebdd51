"""Shutting this process, and all that it starts, out of everything that it does not need: Linux's Landlock.

The messenger's processes run the coordinator's code under some user of the platform's machine. A user of their own is the
classical wall; Landlock (kernel 5.13 and later) is one that needs no administrator: after `confine`, neither this
process nor its children can open a file outside the named places, look into or signal (kernel 6.12) a process outside, or
undo it. `landlock(7)` describes what the kernel promises.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from shared.errors import StorageError

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES, _DUMPABLE = 38, 4

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FIRST_ABI = (1 << 13) - 1
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15
"""Those that make sense for a file: 14 truncates, 15 controls a device. The kernel refuses the others for one."""
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_SIGNALS = 1 << 1
_CAPABILITIES = 0x20080522
"""Version of the structures that capset(2) takes."""


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def available() -> int:
    """Version of Landlock that this kernel has; 0 where it has none."""
    if sys.platform != "linux":
        return 0
    return max(int(_libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))), 0)


def confine(*, read: Iterable[Path], write: Iterable[Path]) -> int:
    """From now on, this process may read and run files below `read`, and do anything below `write`; nothing else.

    Places that do not exist are left out. Descriptors that are open stay open. What an administrator's process could do
    beyond that by its capabilities, it gives up.

    Returns:
        The version of Landlock; 0 where the kernel has none, and nothing was confined.

    Raises:
        StorageError: the kernel has Landlock but refused; nothing may be assumed.
    """
    version = available()
    if version == 0:
        return 0
    rights = _FIRST_ABI | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    ruleset = _Ruleset(files=rights, net=0, scoped=_SIGNALS if version >= 6 else 0)
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
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            raise _refused("prctl")
        if libc.syscall(_RESTRICT, ctypes.c_int(descriptor), ctypes.c_uint32(0)) != 0:
            raise _refused("landlock_restrict_self")
        _drop_capabilities(libc)
    finally:
        os.close(descriptor)
    return version


def of_python() -> list[Path]:
    """What any Python process needs to read: the interpreter, its packages, the system's libraries and settings."""
    named = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/proc", "/run/systemd/resolve", "/sys/fs/cgroup"]
    named += [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()]
    # Of Fedfuse itself the code alone: beside an editable installation anything may lie.
    root = Path(__file__).resolve().parents[1]
    own = [root / name for name in ("client", "server", "shared", "strategies", "simulations", "fedfuse.py")]
    return [*(Path(name) for name in dict.fromkeys(named)), *own]


def devices() -> list[Path]:
    """Devices that programs write to and read from without harm."""
    return [Path(f"/dev/{name}") for name in ("null", "zero", "urandom", "random", "tty", "shm")]


def _allow(libc: ctypes.CDLL, ruleset: int, place: Path, allowed: int) -> None:
    try:
        parent = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(allowed=allowed if place.is_dir() else allowed & _FILE_RIGHTS, parent=parent)
        if libc.syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)) != 0:
            raise _refused(f"landlock_add_rule for {place}")
    finally:
        os.close(parent)


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
