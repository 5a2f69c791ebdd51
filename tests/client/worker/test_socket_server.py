"""The wall's door: who comes in, what is answered, and what becomes of those who do not behave."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client.messenger import unix_socket
from client.messenger.unix_socket import connect_to, listen
from client.messenger.wire import WIRE, Frame, Hangup, pack_record, receive, send, unpack_record
from client.messenger.worker_link import Remote, connect
from client.worker.socket_server import VISITORS, Door
from shared.base.errors import ProtocolError, StorageError
from shared.base.settings import Settings
from shared.base.version import VERSION
from shared.protocol.flower_records import answer_from, to_record
from shared.protocol.messages import PROTOCOL, Answer, Factors, Join, Reason, Refusal, Request, Train, Update

ROOT = Path(__file__).parents[3]
HELLO = {"type": "hello", "wire": WIRE, "protocol": PROTOCOL, "version": VERSION, "warrant": ""}


class Echo:
    """A worker that answers with what it was given, slowly where asked to."""

    name = "shop"

    def __init__(self) -> None:
        self.asked: list[tuple[Request, str]] = []
        self.inside = 0
        self.most = 0
        self.wait = threading.Event()
        self.wait.set()

    def handle(self, request: Request, warrant: str = "", receipt: str = "") -> Answer:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.asked.append((request, warrant))
        assert self.wait.wait(20)
        self.inside -= 1
        if isinstance(request, Train):
            return Update(
                run=request.run, platform="shop", round=request.round, users=9, epsilon=1.0, ledger="", seconds=0.1,
                change=request.adapter,
            )  # fmt: skip
        return Refusal(run=request.run, platform="shop", round=0, reason=Reason.SOURCES)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def door(echo: Echo, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "state" / "worker.sock"
    with Door(echo, listen(path), greeting=0.5, request=1.5, body=1 << 20):
        yield path


def train(size: int = 3) -> Train:
    adapter = {"head.lora_A": np.arange(size, dtype=np.float32).reshape(1, size)}
    return Train(run="r", settings=Settings(), round=2, factors=Factors.B, adapter=adapter)


def test_a_question_is_answered(door: Path, echo: Echo) -> None:
    answer = Remote(path=door, warrant="signed").ask(train())
    assert isinstance(answer, Update)
    np.testing.assert_array_equal(answer.change["head.lora_A"], train().adapter["head.lora_A"])
    assert echo.asked[0][1] == "signed"


def test_a_node_says_where_its_worker_is(door: Path) -> None:
    context = Context(1, 5, {"socket": str(door)}, RecordDict(), {"warrant": "w"})
    link = connect(context)
    assert link == Remote(path=door, warrant="w")
    assert "w'" not in repr(link)
    assert isinstance(link.ask(Join(run="r", settings=Settings())), Refusal)


def test_the_socket_is_for_its_owner_alone(door: Path) -> None:
    assert stat.S_IMODE(door.stat().st_mode) == 0o600
    assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700


def test_a_group_may_be_let_in(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    listener = listen(path, group=os.getgid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    listener.close()


def test_another_user_is_refused_by_the_kernels_word(echo: Echo, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The socket's mode is not what protects: the same visitor, from a user that is not on the list."""
    path = tmp_path / "worker.sock"
    with Door(echo, listen(path), users=[os.getuid() + 1]):
        for _ in range(3):
            with pytest.raises(ProtocolError):
                Remote(path=path, patience=0.0).ask(train())
    assert echo.asked == []
    assert sum("was refused" in record.message for record in caplog.records) == 1  # said once


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_a_process_of_another_user_cannot_even_connect(echo: Echo, tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    path = folder / "worker.sock"

    def visit() -> subprocess.CompletedProcess[str]:
        script = (
            "import os, socket, sys; os.setgroups([]); os.setgid(20002); os.setuid(20002); "
            f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); sys.exit(10 + len(s.recv(1)))"
        )
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    try:
        with Door(echo, listen(path)):
            assert "PermissionError" in visit().stderr
            path.chmod(0o666)  # and were the mode ever wrong, the kernel's word holds: closed without a byte
            assert visit().returncode == 10
    finally:
        shutil.rmtree(folder)
    assert echo.asked == []


class Counted:
    """A lock that says how many have come to it."""

    def __init__(self) -> None:
        self._lock, self.came = threading.Lock(), threading.Semaphore(0)

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> None:
        self.came.release()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_one_at_a_time(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    with Door(echo, listen(path)) as door:
        door._serial = serial = Counted()  # type: ignore[assignment]
        echo.wait.clear()
        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.append(Remote(path=path).ask(train()))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert serial.came.acquire(timeout=20)
        # All five requests are read; one is being answered, and the others wait.
        assert len(echo.asked) <= 1
        echo.wait.set()
        for thread in threads:
            thread.join()
    assert len(answers) == 5 and echo.most == 1


def greet(path: Path) -> Frame:
    with connect_to(path) as connection:
        send(connection, Frame(header={**HELLO, "only": "greet"}))
        return receive(connection, seconds=2.0)


def test_a_busy_worker_still_greets(door: Path, echo: Echo) -> None:
    assert greet(door).header["busy"] is False
    echo.wait.clear()
    thread = threading.Thread(target=Remote(path=door).ask, args=(train(),))
    thread.start()
    while not echo.asked:
        time.sleep(0.01)
    assert greet(door).header["busy"] is True
    echo.wait.set()
    thread.join()


def test_who_goes_away_does_not_stop_what_was_begun(door: Path, echo: Echo) -> None:
    echo.wait.clear()
    with connect_to(door) as connection:
        send(connection, Frame(header=HELLO))
        receive(connection, seconds=2.0)
        send(connection, pack_record("request", to_record(train(200_000))))
        while not echo.asked:
            time.sleep(0.01)
    echo.wait.set()
    assert isinstance(Remote(path=door).ask(train()), Update)
    assert len(echo.asked) == 2


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1, None, "1", [], True])
def test_another_protocol_is_turned_away_with_ours(
    door: Path, echo: Echo, caplog: pytest.LogCaptureFixture, protocol: object
) -> None:
    with connect_to(door) as connection:
        send(connection, Frame(header={**HELLO, "protocol": protocol, "version": "9.9.9"}))
        answer = receive(connection, seconds=2.0)
    assert answer.header == {
        "type": "turned-away", "why": "version", "wire": WIRE, "protocol": PROTOCOL, "version": VERSION, "platform": "shop"
    }  # fmt: skip
    assert echo.asked == []
    assert "9.9.9" in caplog.text and VERSION in caplog.text  # the operator reads which version is needed


def test_the_messenger_of_a_newer_coordinator_says_so(
    door: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("client.messenger.worker_link.PROTOCOL", PROTOCOL + 1)
    monkeypatch.setattr("client.messenger.worker_link.VERSION", "2.0.0")
    answer = Remote(path=door).ask(train())
    assert answer == Refusal(run="r", platform="shop", round=0, reason=Reason.VERSION)
    assert "the run needs 2.0.0" in caplog.text


def test_fuzzed_conversations_leave_the_door_open(door: Path, echo: Echo) -> None:
    """Every sort of rubbish, at every point of the conversation."""
    random = np.random.default_rng(0)
    whole = [Frame(header=HELLO), pack_record("request", to_record(train()))]
    head = struct.Struct(">7sBIQ")
    for number in range(60):
        with connect_to(door) as connection:
            connection.settimeout(2.0)
            try:
                if number % 3:
                    send(connection, whole[0])
                    receive(connection, seconds=2.0)
                kind = number % 5
                if kind == 0:
                    connection.sendall(random.bytes(int(random.integers(1, 200))))
                elif kind == 1:
                    send(connection, Frame(header={"type": "request", "scalars": {"fedfuse": {}}, "arrays": []}))
                elif kind == 2:
                    connection.sendall(head.pack(b"FEDFUSE", WIRE, 2, 1 << 40) + b"{}")
                elif kind == 3:
                    send(connection, Frame(header=dict(whole[1].header), body=random.bytes(300)))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1 << 16)
            except (OSError, ProtocolError):
                continue
    assert echo.asked == []
    assert isinstance(Remote(path=door).ask(train()), Update)


def test_what_is_no_request_is_answered_with_one_word(door: Path, echo: Echo) -> None:
    with connect_to(door) as connection:
        send(connection, Frame(header=HELLO))
        receive(connection, seconds=2.0)
        send(connection, pack_record("request", to_record(Refusal(run="r", platform="p", round=1, reason=Reason.FAILED))))
        answer = answer_from(unpack_record(receive(connection, seconds=2.0)))
    assert answer == Refusal(run="unknown", platform="shop", round=0, reason=Reason.MESSAGE)
    assert echo.asked == []


def test_a_request_above_the_limit_is_not_read(door: Path, echo: Echo) -> None:
    with pytest.raises(ProtocolError):
        Remote(path=door, patience=0.0).ask(train(300_000))
    assert echo.asked == []
    assert isinstance(Remote(path=door).ask(train()), Update)


def test_silent_visitors_are_sent_away_and_cannot_fill_the_seats(door: Path) -> None:
    silent = [connect_to(door) for _ in range(VISITORS)]
    began = time.monotonic()
    try:
        assert isinstance(Remote(path=door, patience=10.0).ask(train()), Update)
        assert time.monotonic() - began < 5.0
    finally:
        for connection in silent:
            connection.close()


def test_a_worker_that_is_restarted_is_waited_for(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "worker.sock"
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(Remote(path=path, patience=20.0).ask(train())))
    thread.start()
    time.sleep(0.3)
    with Door(echo, listen(path)):
        thread.join(10)
    assert isinstance(answers[0], Update)


def test_a_worker_that_dies_while_it_is_asked_is_asked_again(tmp_path: Path, echo: Echo) -> None:
    path = tmp_path / "worker.sock"
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from client.worker.socket_server import Door
from client.messenger.unix_socket import listen
class Dies:
    name = "shop"
    def handle(self, request, warrant="", receipt=""):
        os.kill(os.getpid(), 9)
door = Door(Dies(), listen(Path({str(path)!r})))
print("there", flush=True)
door.serve()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(Remote(path=path, patience=20.0).ask(train())))
    thread.start()
    assert process.wait(20) == -9
    with Door(echo, listen(path)):  # a socket left behind by a killed worker is no hindrance
        thread.join(10)
    assert isinstance(answers[0], Update)


def test_nobody_there_is_said_in_time(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="cannot be reached") as caught:
        Remote(path=tmp_path / "nobody.sock", patience=0.2).ask(train())
    assert "fedfuse client worker" in caught.value.do


def test_a_second_worker_is_refused(door: Path) -> None:
    with pytest.raises(StorageError, match="another worker"):
        listen(door)


def test_a_long_path_is_no_hindrance(echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "worker.sock"
    with Door(echo, listen(path)):
        assert isinstance(Remote(path=path).ask(train()), Update)


def test_systemd_may_bring_the_socket(echo: Echo, tmp_path: Path) -> None:
    """A process that is handed a listening descriptor 3 by its parent, as systemd does it."""
    path = tmp_path / "made-by-systemd.sock"
    listener = listen(path)
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from client.messenger.unix_socket import inherited
os.dup2({listener.fileno()}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
print(inherited().getsockname(), inherited({{"LISTEN_PID": "1", "LISTEN_FDS": "1"}}), inherited({{}}))
"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, pass_fds=[listener.fileno()], capture_output=True, text=True, check=False)
    listener.close()
    assert done.stdout.strip() == f"{path} None None", done.stderr


def test_a_system_that_does_not_tell_who_connects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from shared.base.errors import InputError

    monkeypatch.delattr(unix_socket.socket, "SO_PEERCRED")
    with pytest.raises(InputError, match="does not say who connects"):
        listen(tmp_path / "worker.sock")


def test_the_version_is_the_projects() -> None:
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == VERSION


def test_an_unreadable_hello_is_no_crash(door: Path, make_hello: Callable[[object], bytes]) -> None:
    for value in (None, 3, [], {"type": 4}, {"type": "hello"}):
        with connect_to(door) as connection:
            connection.sendall(make_hello(value))
            connection.settimeout(2.0)
            try:
                receive(connection, seconds=2.0)
            except Hangup:
                continue
    assert isinstance(Remote(path=door).ask(train()), Update)


@pytest.fixture
def make_hello() -> Callable[[object], bytes]:
    def make(value: object) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack(">7sBIQ", b"FEDFUSE", WIRE, len(text), 0) + text

    return make
