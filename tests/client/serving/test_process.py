"""The command as a process: for whom it listens, its token, and how it stops."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import fedfuse
from client.config.platform_file import PlatformFile
from shared.base.errors import ExitCode, InputError, StorageError
from shared.pages.local_server import names_of, require_private, tcp_socket, token_in

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(file: PlatformFile) -> Iterator[Callable[..., tuple[Any, str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "fedfuse", "serve", str(file.path), *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield begin
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_on_this_machine_with_a_token_until_it_is_stopped(file: PlatformFile, run: Callable[..., tuple[Any, str]]) -> None:
    process, said = run("--port", "0")
    address = said.split(" at ")[1].split(";")[0]
    assert address.startswith("http://127.0.0.1:") and str(file.state / "serving.token") in said
    token = (file.state / "serving.token").read_text().strip()
    assert stat.S_IMODE((file.state / "serving.token").stat().st_mode) == 0o600 and token not in said and len(token) >= 32
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {token}"}, timeout=60) as client:
        before = client.post("/recommend", json={"user": "u3"}).json()
        item = before["items"][0]["item"]
        assert client.post("/events", json={"events": [{"user": "u3", "item": item}]}).status_code == 200
    assert httpx.get(f"{address}/platform", timeout=60).status_code == 401
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and out.strip() == "stopped"
    # The next one has the event, though this one was killed, not stopped.
    process, said = run("--port", "0")
    address = said.split(" at ")[1].split(";")[0]
    after = httpx.post(
        f"{address}/recommend", json={"user": "u3"}, headers={"authorization": f"Bearer {token}"}, timeout=60
    ).json()
    assert item not in {one["item"] for one in after["items"]}


def _children(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == process:
                command = path.with_name("cmdline").read_bytes()
                found += [int(path.parent.name)] * (b"spawn_main" in command)
    return found


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _until_ended(processes: list[int]) -> None:
    end = time.monotonic() + 60
    while any(map(_runs, processes)):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def three(file: PlatformFile, run: Callable[..., tuple[Any, str]]) -> tuple[Any, str, list[int]]:
    """A server of three processes: the first one, its address, the others."""
    process, said = run("--port", "0", "--no-token", "--processes", "3")
    others = _children(process.pid)
    assert len(others) == 2
    return process, said.split(" at ")[1], others


def test_every_process_counts_an_event_at_once_and_they_end_together(three: tuple[Any, str, list[int]]) -> None:
    process, address, others = three
    with httpx.Client(base_url=address, timeout=60) as client:
        item = client.post("/recommend", json={"user": "u3"}).json()["items"][0]["item"]
        assert client.post("/events", json={"events": [{"user": "u3", "item": item}]}).status_code == 200
    spent = {one: Path(f"/proc/{one}/io").read_text() for one in (process.pid, *others)}
    for _ in range(40):
        # A new connection for each request, so that any of the processes may accept it.
        listed = httpx.post(f"{address}/recommend", json={"user": "u3"}, timeout=60).json()["items"]
        assert item not in {one["item"] for one in listed}
    at_work = [one for one, before in spent.items() if Path(f"/proc/{one}/io").read_text() != before]
    assert len(at_work) > 1
    # And the server ends with one of its processes, lest half of the cores answer and nobody knows.
    os.kill(others[1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == ExitCode.STORAGE
    assert not any(map(_runs, others))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_server(three: tuple[Any, str, list[int]], how: signal.Signals) -> None:
    process, address, others = three
    for _ in range(8):
        assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200
    process.send_signal(how)
    process.communicate(timeout=120)
    assert process.returncode == {signal.SIGTERM: 0, signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGKILL: -signal.SIGKILL}[how]
    _until_ended(others)


def test_a_unix_socket_asks_for_no_token_and_is_its_owner_s(
    file: PlatformFile, tmp_path: Path, run: Callable[..., tuple[Any, str]]
) -> None:
    path = tmp_path / "here" / "recommend.sock"
    process, _ = run("--socket", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
        assert client.post("http://anything/recommend", json={"user": "u3"}).status_code == 200
        assert client.get("http://anything/healthz").json()["status"] == "ok"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert not path.exists()


def test_a_request_at_work_is_finished(file: PlatformFile, run: Callable[..., tuple[Any, str]]) -> None:
    process, said = run("--port", "0")
    port = int(said.split(";")[0].rsplit(":", 1)[1])
    token = (file.state / "serving.token").read_text().strip()
    body = b'{"user": "u3"}'
    headers = ["POST /recommend HTTP/1.1", f"host: 127.0.0.1:{port}", f"authorization: Bearer {token}"]
    headers += ["content-type: application/json", f"content-length: {len(body)}", "expect: 100-continue", "", ""]
    head = "\r\n".join(headers)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        # The server says so once the request is at work and waits for its body.
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(body[:5])
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        connection.sendall(body[5:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--host", "0.0.0.0"],
        ["--host", "::"],
        ["--host", "192.0.2.1", "--network"],
        ["--host", "shop.example", "--network"],
        ["--no-token", "--network"],
        ["--no-token", "--host", "0.0.0.0"],
        ["--socket", "x.sock", "--network"],
        ["--no-token", "--token", "x"],
    ],
)
def test_nothing_is_opened_to_others_by_mistake(file: PlatformFile, words: list[str]) -> None:
    result = CliRunner().invoke(fedfuse.app, ["serve", str(file.path), *words])
    assert isinstance(result.exception, InputError)


def test_what_is_this_machine() -> None:
    for host in ("127.0.0.1", "127.0.0.53", "::1", "localhost"):
        require_private(host, network=False, token=None)
    require_private("0.0.0.0", network=True, token=Path("token"))
    with tcp_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert names_of(listener, "127.0.0.1") == [f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"]
        assert names_of(listener, "0.0.0.0") is None
        with pytest.raises(StorageError, match="cannot listen"):
            tcp_socket("127.0.0.1", port)


@pytest.mark.parametrize("text", ["", "short", "x" * 129, "x" * 40 + " y", "ä" * 40])
def test_what_is_no_token(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="no token"):
        token_in(path, make=False)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(InputError, match="cannot be read"):
        token_in(path, make=False)
    made = token_in(path, make=True)
    assert made == token_in(path, make=True) and stat.S_IMODE(path.stat().st_mode) == 0o600
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(InputError, match="others can read"):
            token_in(path, make=True)
