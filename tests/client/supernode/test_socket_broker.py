"""The broker: the cage reaches the worker through it, again and again, and nothing else; no nonsense stops it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from client.messenger.unix_socket import listen, user_of
from client.supernode.sandbox import wall

ROOT = Path(__file__).parents[3]
Run = Callable[[str], subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.skipif(not wall().sockets, reason="this kernel closes no Unix sockets, so there is no broker")


@pytest.fixture
def in_the_cage(tmp_path: Path) -> Run:
    """Runs code behind `client.supernode.process`'s own cage, broker and all, with the worker's socket at tmp_path/worker."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        inside = tmp_path / "node"
        inside.mkdir(exist_ok=True)
        script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from client.supernode.process import Messenger, _shut
from client.supernode.fork_launcher import Passing
from client.messenger.unix_socket import connect_through
messenger = Messenger(folder={str(inside)!r}, address="h:1", socket={str(tmp_path / "worker")!r}, authority="/a", key="/k")
channel = _shut(messenger, 2)
ask = lambda: connect_through(channel, seconds=20.0)
{code}
"""
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    return run


def test_it_connects_to_the_worker_again_and_again(tmp_path: Path, in_the_cage: Run) -> None:
    with listen(tmp_path / "worker") as listener:

        def answer() -> None:
            for number in range(4):
                connection, _ = listener.accept()
                time.sleep(0.2)  # whoever gets the connection has to wait for what comes
                with connection:
                    connection.sendall(f"{number} of user {user_of(connection)}".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        code = """
print(ask().recv(99), ask().recv(99))
if os.fork() == 0:
    print(ask().recv(99), flush=True)
    os._exit(0)
os.wait()
child = '''
import os, socket
ours, theirs = socket.socketpair()
socket.send_fds(socket.socket(fileno=int(os.environ["FEDFUSE_BROKER"])), [b"?"], [theirs.fileno()])
print(socket.socket(fileno=socket.recv_fds(ours, 2, 1)[1][0]).recv(99))
'''
print(Passing(channel).Popen([sys.executable, "-c", child], stdout=subprocess.PIPE).communicate()[0])
"""
        done = in_the_cage(code)
        thread.join(20)
    for number in range(4):
        assert f"{number} of user {os.getuid()}" in done.stdout, done.stderr


def test_a_worker_that_is_away_is_an_error_of_the_moment(tmp_path: Path, in_the_cage: Run) -> None:
    done = in_the_cage("for _ in range(2):\n    try:\n        ask()\n    except OSError as error:\n        print(error.errno)")
    assert done.stdout.split() == ["2", "2"], done.stderr


def test_nonsense_does_not_stop_it(tmp_path: Path, in_the_cage: Run) -> None:
    with listen(tmp_path / "worker") as listener:

        def answer() -> None:
            while True:
                connection, _ = listener.accept()
                # Those that were asked for with nonsense are closed already.
                with connection, contextlib.suppress(OSError):
                    connection.sendall(b"worker")

        threading.Thread(target=answer, daemon=True).start()
        code = """
import socket
line = socket.socket(fileno=os.dup(channel))
reader, writer = os.pipe()
one, other = socket.socketpair()
other.close()
for words, given in ((b"x", []), (b"/etc/passwd", []), (b"x", [reader]), (b"x", [0, 1, 2]), (b"x", [one.fileno()]),
                 (b"x", [line.fileno()]), (b"x", [os.open("/dev/null", os.O_RDONLY)])):
    socket.send_fds(line, [words], given)
print(ask().recv(99))
"""
        done = in_the_cage(code)
    assert done.stdout.strip() == "b'worker'", done.stderr


def test_it_ends_with_the_messenger(tmp_path: Path, in_the_cage: Run) -> None:
    # Even while somebody in the cage still holds the channel.
    done = in_the_cage("if os.fork() == 0:\n    os.setsid(); os.close(1); os.close(2)\n    import time; time.sleep(5)\n")
    assert done.returncode == 0, done.stderr
    mine = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
    _, alive = psutil.wait_procs(mine, timeout=3)
    assert len(alive) <= 1, alive  # the one that sleeps
    for one in alive:
        one.kill()
