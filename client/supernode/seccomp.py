"""A seccomp filter over the system calls that reach other processes without opening a file (Linux 4.14, x86-64 and AArch64).

Landlock checks paths. It does not see a connection to a Unix socket, what io_uring does on a process's behalf, System V and POSIX
message queues, shared memory and semaphores, or the keyrings of the user. `install_filter` denies all of these to the process and
to everything that it starts later; no process can remove the filter.

What stays allowed: TCP and UDP over IPv4 and IPv6, connected pairs (`socketpair`), and every descriptor that is open already.
`seccomp(2)` specifies the filter; addresses in `struct seccomp_data` assume a little-endian machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from shared.base.errors import StorageError

_NO_NEW_PRIVILEGES = 38
_SET_FILTER, _ACTION_AVAILABLE = 1, 2
_ALL_THREADS = 1
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE = 0, 4

_UNIX, _INET, _INET6, _STREAM = 1, 2, 10, 1
_ANY, _TCP, _UDP = 0, 6, 17
_KIND = 0xF
"""Bits of a socket's type that are the type; the others are flags."""
_FAST_OPEN = 0x20000000
"""Connects inside a send, where Landlock does not look."""
_PUSH_KEYS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: type into the terminal from which the process was started."""

Block = list[tuple[int, int, int, int]]
"""Instructions: code, jump if true, jump if false, operand."""


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """The numbers of one architecture; each of `closed` fails with ENOSYS.

    Args:
        audit: Its AUDIT_ARCH constant. A call made in another convention (32-bit code) ends the process.
        limit: System call numbers from here on are another convention's (x32); 0 for none.
    """

    audit: int
    seccomp: int
    socket: int
    socketpair: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    ioctl: int
    closed: tuple[int, ...]
    limit: int = 0


_IO_URING = (425, 426, 427)
_PIDFD_GETFD = 438
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        seccomp=317,
        socket=41,
        socketpair=53,
        sendto=44,
        sendmsg=46,
        sendmmsg=307,
        ioctl=16,
        # shm*, sem*, msg*; mq_*; add_key, request_key, keyctl
        closed=(29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 220, *range(240, 246), 248, 249, 250, *_IO_URING, _PIDFD_GETFD),
        limit=0x40000000,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        seccomp=277,
        socket=198,
        socketpair=199,
        sendto=206,
        sendmsg=211,
        sendmmsg=269,
        ioctl=29,
        # mq_*; msg*, sem*, shm*; add_key, request_key, keyctl
        closed=(*range(180, 198), 217, 218, 219, *_IO_URING, _PIDFD_GETFD),
    ),
}


def seccomp_available() -> bool:
    """Whether `install_filter` can close these calls on this machine."""
    machine = _machine()
    if machine is None:
        return False
    action = ctypes.c_uint32(_ERRNO)
    return int(_libc().syscall(machine.seccomp, _ACTION_AVAILABLE, 0, ctypes.byref(action))) == 0


def install_filter() -> None:
    """Install the filter in every thread of this process, for good; children inherit it.

    Denied calls fail as on a kernel that lacks them (ENOSYS; a socket with EAFNOSUPPORT, as under systemd's
    `RestrictAddressFamilies`), so that libraries take their other way.

    Raises:
        StorageError: the kernel refuses; nothing may be assumed to be closed.
    """
    machine = _machine()
    if machine is None:
        raise StorageError(f"no filter is known for {platform.machine()}", where="seccomp", do="use a user of its own")
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(length=len(code) // 8, filter=ctypes.addressof(buffer))
    libc = _libc()
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise _refused("prctl")
    if libc.syscall(machine.seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0:
        raise _refused("seccomp")


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _program(machine: _Machine) -> Block:
    program: Block = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine.limit:
        program += [(_AT_LEAST, 0, 1, machine.limit), (_RETURN, 0, 0, _KILL)]
    families = [*_unless(0, (_INET, _INET6), errno.EAFNOSUPPORT), *_unless(2, (_ANY, _TCP, _UDP), errno.EPROTONOSUPPORT)]
    pairs = [*_unless(0, (_UNIX,), errno.EAFNOSUPPORT), *_unless(1, (_STREAM,), errno.ESOCKTNOSUPPORT, mask=_KIND)]
    program += _on(machine.socket, families)
    program += _on(machine.socketpair, pairs)
    for number, argument in ((machine.sendto, 3), (machine.sendmsg, 2), (machine.sendmmsg, 3)):
        program += _on(number, [_argument(argument), (_ANY_BIT, 0, 1, _FAST_OPEN), _deny(errno.EOPNOTSUPP)])
    keys = [_argument(1)]
    for request in _PUSH_KEYS:
        keys += [(_EQUAL, 0, 1, request), _deny(errno.EPERM)]
    program += _on(machine.ioctl, keys)
    for number in machine.closed:
        program += [(_EQUAL, 0, 1, number), _deny(errno.ENOSYS)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _on(number: int, body: Block) -> Block:
    """Run `body` for one system call, and allow what it does not deny."""
    return [(_EQUAL, 0, len(body) + 1, number), *body, (_RETURN, 0, 0, _ALLOW)]


def _unless(argument: int, values: Sequence[int], error: int, *, mask: int = 0) -> Block:
    """Deny unless an argument, which the kernel takes as an int, is one of `values`."""
    compared = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_argument(argument), *([(_AND, 0, 0, mask)] if mask else []), *compared, _deny(error)]


def _argument(place: int) -> tuple[int, int, int, int]:
    return _LOAD, 0, 0, 16 + 8 * place


def _deny(error: int) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, _ERRNO | error


def _machine() -> _Machine | None:
    if sys.platform != "linux" or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return None
    return _MACHINES.get(platform.machine())


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _refused(call: str) -> StorageError:
    return StorageError(
        f"{call}: {os.strerror(ctypes.get_errno())}", where="seccomp", do="run the messenger under a user of its own"
    )
