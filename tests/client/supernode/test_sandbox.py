"""The messenger's cage: what is outside cannot be opened, looked into, signalled or connected to, not even by a child."""

from __future__ import annotations

import json
import os
import platform
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.supernode import seccomp
from client.supernode.sandbox import Wall, confine, landlock_version, wall

ROOT = Path(__file__).parents[3]
needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
needs_seccomp = pytest.mark.skipif(
    not seccomp.seccomp_available(), reason="this kernel has no seccomp, or this processor is unknown"
)
SECRET = "zebrafinch"

CAGE = """
import json, os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from client.supernode.sandbox import confine, harmless_devices, of_python
found = {{}}

def attempt(name, action):
    try:
        found[name] = repr(action())[:200]
    except BaseException as error:
        found[name] = type(error).__name__

wall = confine(read=of_python(), write=[Path({inside!r}), *harmless_devices()], connect={connect!r})
"""

ATTACK = """
import subprocess
outside, inside, victim = {outside!r}, {inside!r}, {victim}
attempt("read", lambda: open(outside + "/rows.csv").read())
attempt("list", lambda: os.listdir(outside))
attempt("write", lambda: open(outside + "/rows.csv", "w"))
attempt("truncate", lambda: os.truncate(outside + "/rows.csv", 0))
attempt("remove", lambda: os.remove(outside + "/rows.csv"))
attempt("link", lambda: os.link(outside + "/rows.csv", inside + "/rows.csv"))
os.symlink(outside + "/rows.csv", inside + "/alias")
attempt("symlink", lambda: open(inside + "/alias").read())
attempt("child", lambda: subprocess.run(["cat", outside + "/rows.csv"], capture_output=True, check=True))
attempt("environment", lambda: open(f"/proc/{{victim}}/environ").read())
attempt("memory", lambda: open(f"/proc/{{victim}}/mem", "rb"))
attempt("maps", lambda: open(f"/proc/{{victim}}/maps").read())
attempt("root", lambda: open(f"/proc/{{victim}}/root" + outside + "/rows.csv").read())
attempt("folder", lambda: os.listdir(f"/proc/{{victim}}/cwd"))
attempt("command line", lambda: open(f"/proc/{{victim}}/cmdline").read())
attempt("memory used", lambda: open(f"/proc/{{victim}}/statm").read())
attempt("shared memory", lambda: os.listdir("/dev/shm"))
attempt("terminal", lambda: open("/dev/tty", "wb"))
attempt("kill", lambda: os.kill(victim, 15))
attempt("mount", lambda: subprocess.run(["mount", "-t", "tmpfs", "none", inside], capture_output=True, check=True))
attempt("own file", lambda: open(inside + "/mine", "w").write("x"))
attempt("import", lambda: __import__("client.messenger.worker_link").__name__)
print(json.dumps(found))
"""

CONNECT = """
import asyncio, socket, subprocess
path, abstract, letters, port, allowed = {path!r}, {abstract!r}, {letters!r}, {port}, {allowed}

def talk(family, to, *more):
    with socket.socket(family, *more) as connection:
        connection.settimeout(5)
        connection.connect(to)
        return connection.recv(99)

def of_a_pair(kind, to):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    other.close()
    one.settimeout(5)
    one.connect(to)
    return one.recv(99) if kind != socket.SOCK_DGRAM else one.send(b"x")

def fast_open(send):
    with socket.socket() as connection:
        connection.settimeout(5)
        send(connection, 0x20000000, ("127.0.0.1", port))
        return connection.recv(99)

attempt("pathname", lambda: talk(socket.AF_UNIX, path))
attempt("abstract", lambda: talk(socket.AF_UNIX, abstract))
attempt("datagram", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", letters))
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
    for to in (path, letters):
        attempt(f"pair {{kind.name}} {{Path(to).name}}", lambda kind=kind, to=to: of_a_pair(kind, to))
attempt("datagram pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", letters))
attempt("child", lambda: subprocess.run(
    [sys.executable, "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({{path!r}})"], capture_output=True, check=True))
for family in ("AF_VSOCK", "AF_NETLINK", "AF_ALG", "AF_PACKET"):
    attempt(family, lambda family=family: socket.socket(getattr(socket, family), socket.SOCK_RAW))
attempt("TCP", lambda: talk(socket.AF_INET, ("127.0.0.1", port)))
attempt("multipath TCP", lambda: talk(socket.AF_INET, ("127.0.0.1", port), socket.SOCK_STREAM, 262))
attempt("sendto", lambda: fast_open(lambda connection, flag, to: connection.sendto(b"x", flag, to)))
attempt("sendmsg", lambda: fast_open(lambda connection, flag, to: connection.sendmsg([b"x"], [], flag, to)))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("allowed port", lambda: talk(socket.AF_INET, ("127.0.0.1", allowed)))
attempt("pair", lambda: [one.close() for one in socket.socketpair()])
attempt("event loop", lambda: asyncio.run(asyncio.sleep(0)))
attempt("UDP", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)))
print(json.dumps(found))
"""

CALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *words):
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"

block = (ctypes.c_char * 4096)()
numbers = json.loads({numbers!r})
attempt("io_uring", lambda: call(425, 4, ctypes.byref(block)))
attempt("shared memory", lambda: call(numbers["shmget"], 0x5EED, 4096, 0o1600))
attempt("semaphores", lambda: call(numbers["semget"], 0x5EED, 1, 0o1600))
attempt("messages", lambda: call(numbers["msgget"], 0x5EED, 0o1600))
attempt("queue", lambda: call(numbers["mq_open"], b"wall", 0o102, 0o600, None))
attempt("keyring", lambda: call(numbers["keyctl"], 0, ctypes.c_int(-4), 1))
attempt("descriptor", lambda: call(438, os.pidfd_open(os.getpid()), 1, 0))
attempt("typing", lambda: call(numbers["ioctl"], 0, 0x5412, b"x"))
attempt("number", os.getpid)
print(json.dumps(found))
"""
NUMBERS = {
    "x86_64": {"shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "keyctl": 250, "ioctl": 16},
    "aarch64": {"shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "keyctl": 219, "ioctl": 29},
}


def caged(inside: Path, script: str, *, connect: list[int] | None = None) -> dict[str, str]:
    """What a script gets in a cage of its own; nothing secret may be among it."""
    script = CAGE.format(root=str(ROOT), inside=str(inside), connect=connect) + script
    done = subprocess.run([sys.executable, "-c", script], cwd=inside, capture_output=True, text=True, check=False, timeout=120)
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else pytest.fail(done.stderr)
    print(found)
    assert SECRET not in done.stdout
    return found


@needs_landlock
def test_nothing_outside_is_within_reach(tmp_path: Path) -> None:
    outside, inside = tmp_path / "platform", tmp_path / "messenger"
    outside.mkdir()
    inside.mkdir()
    (outside / "rows.csv").write_text(SECRET)
    environment = {**os.environ, "SHOP_DATABASE_PASSWORD": SECRET}
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", SECRET], env=environment, cwd=outside)
    try:
        found = caged(inside, ATTACK.format(outside=str(outside), inside=str(inside), victim=victim.pid))
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    denied = {"PermissionError", "CalledProcessError", "OSError"}
    allowed = {"own file", "import"}
    if landlock_version() < 6:  # older kernels do not confine signals
        allowed.add("kill")
    assert {name for name, result in found.items() if result not in denied} == allowed
    assert (outside / "rows.csv").read_text() == SECRET


@pytest.fixture
def helpers(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Processes of the same user that would read a file for whoever asks, at every kind of address."""
    made: list[socket.socket] = []

    def serve(listener: socket.socket) -> socket.socket:
        def answer() -> None:
            try:
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(SECRET.encode())
                    connection.close()
            except OSError:
                return

        made.append(listener)
        listener.listen()
        threading.Thread(target=answer, daemon=True).start()
        return listener

    path, letters, abstract = tmp_path / "helper", tmp_path / "letters", f"\0fedfuse-{secrets.token_hex(8)}"
    for name in (str(path), abstract):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        serve(listener)
    box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    box.bind(str(letters))
    box.setblocking(False)
    made.append(box)
    closed, allowed = (serve(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
    yield {
        "path": str(path),
        "abstract": abstract,
        "letters": str(letters),
        "port": closed.getsockname()[1],
        "allowed": allowed.getsockname()[1],
        "box": box,
    }
    for one in made:
        one.shutdown(socket.SHUT_RDWR)
        one.close()


@needs_landlock
@needs_seccomp
class TestOtherProcesses:
    def test_no_helper_can_be_asked(self, tmp_path: Path, helpers: dict[str, Any]) -> None:
        box = helpers.pop("box")
        # The ports that are named are open; the helper behind one of them says something else than the secret.
        allowed = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=lambda: allowed.accept()[0].sendall(b"hello"), daemon=True).start()
        port = helpers["allowed"] = allowed.getsockname()[1]
        inside = tmp_path / "messenger"
        inside.mkdir()
        found = caged(inside, CONNECT.format(**helpers), connect=[port])
        open_ = {"allowed port", "pair", "event loop", "UDP"}
        if landlock_version() < 4:  # older kernels do not confine TCP
            open_ |= {"TCP", "listen"}
        denied = {"PermissionError", "CalledProcessError", "OSError", "AttributeError"}
        assert {name for name, result in found.items() if result not in denied} == open_
        with pytest.raises(BlockingIOError):
            box.recv(99)

    def test_no_call_reaches_around_the_files(self, tmp_path: Path) -> None:
        found = caged(tmp_path, CALLS.format(numbers=json.dumps(NUMBERS[platform.machine()])))
        assert {name for name, result in found.items() if result not in {"OSError", "PermissionError"}} == {"number"}

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has other conventions")
    @pytest.mark.parametrize("convention", ["32-bit", "x32"])
    def test_another_calling_convention_ends_the_process(self, tmp_path: Path, convention: str) -> None:
        """The same numbers mean other calls there, and the kernel would take them."""
        # mov eax, 359 (socket); mov ebx, 1; mov ecx, 1; xor edx, edx; int 0x80; ret
        code = bytes.fromhex("53b867010000bb01000000b90100000031d2cd805bc3")
        ask = f"""
import ctypes, mmap
if {convention!r} == "x32":
    ctypes.CDLL(None).syscall(0x40000000 + 41, 1, 1, 0)
else:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write({code!r})
    ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("still here")
"""
        script = CAGE.format(root=str(ROOT), inside=str(tmp_path), connect=None) + ask
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (-signal.SIGSYS, ""), done.stderr

    def test_threads_that_run_already_are_caged_too(self, tmp_path: Path, helpers: dict[str, Any]) -> None:
        found = caged(tmp_path, "print(json.dumps(found))")
        assert found == {}
        code = f"""
import sys, threading
sys.path.insert(0, {str(ROOT)!r})
import socket
from client.supernode import seccomp
go, got = threading.Event(), []
def other():
    go.wait()
    try:
        socket.socket(socket.AF_UNIX).connect({helpers["path"]!r})
        got.append("connected")
    except OSError as error:
        got.append(error.errno)
thread = threading.Thread(target=other)
thread.start()
seccomp.install_filter()
go.set()
thread.join()
print(got)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[97]"


class TestOldKernels:
    @pytest.mark.skipif(landlock_version() < 6, reason="this kernel does not scope abstract sockets")
    def test_landlock_alone_closes_abstract_sockets(self, tmp_path: Path, helpers: dict[str, Any]) -> None:
        helpers.pop("box")
        without = "from client.supernode import seccomp\nseccomp.seccomp_available = lambda: False\n"
        done = CAGE.format(root=str(ROOT), inside=str(tmp_path), connect=[1]).replace("wall =", f"{without}wall =")
        script = done + CONNECT.format(**helpers)
        found = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        assert found["abstract"] == found["TCP"] == "PermissionError"
        assert SECRET in found["pathname"]  # what `Wall.open` says of such a kernel is true

    def test_one_without_landlock_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("client.supernode.sandbox.landlock_version", lambda: 0)
        assert not confine(read=[], write=[])
        assert Path(__file__).read_text()  # nothing was confined
        assert socket.socket(socket.AF_UNIX).close() is None

    def test_what_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Wall(landlock=6, sockets=True).open == []
        assert [len(Wall(landlock=version, sockets=False).open) for version in (1, 4, 6)] == [3, 2, 1]
        monkeypatch.setattr("client.supernode.sandbox.landlock_version", lambda: 6)
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        assert wall() == Wall(landlock=6, sockets=False) and "Unix sockets" in str(wall())
