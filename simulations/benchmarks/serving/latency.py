"""What a served recommendation takes.

    python -m simulations.benchmarks.serving.latency [--items 100000] [--users 50000] [--rate 50] [--seconds 30]
        [--processes 1 2] [--json]

Load and server on loopback: the server that `fedfuse serve` starts, on a model of drawn numbers (`drawn_model.py`), and an open
load of which nine in ten are /recommend of ten items, the others /similar, /explain and /events. Reported are latencies as the
load sees them, and processor time of the server per request. Before that the same lists are made in one thread without HTTP, in
processor time, which another program on the machine does not change: what the code itself takes.

On a shared machine the latencies tell of its other users: go by the processor time, and say the load average.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from client.config.platform_file import PlatformFile, load
from client.serving.answers import PlatformAnswers
from client.serving.api import create_api
from client.serving.event_log import EventLog
from client.serving.messages import RecommendRequest
from client.serving.processes import further_processes
from shared.pages.local_server import names_of, serve, tcp_socket
from simulations.benchmarks.serving.drawn_model import DrawnModels
from simulations.benchmarks.serving.load import open_load

_FILE = """name = "drawn"
users = 1000
catalogue = { path = "items.csv" }
[privacy]
epsilon = 8.0
delta = 1e-5
[sources.events]
kind = "interactions"
path = "events.csv"
"""
_ALONE = 300


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of the server, one after the other")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(
                serving_latency(
                    Path(folder), options.items, options.users, rate=options.rate, seconds=options.seconds, processes=processes
                )
            )
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name in found[0]:
        print(f"{name:>28}" + "".join(f"{one[name]:>12}" for one in found))


def serving_latency(folder: Path, items: int, users: int, *, rate: float, seconds: float, processes: int = 1) -> dict[str, Any]:
    """All figures.

    Args:
        folder: An empty one.
        rate: Requests a second.
        processes: Of the server.
    """
    (folder / "drawn.toml").write_text(_FILE)
    for name, text in (("items.csv", "item\np0\n"), ("events.csv", "user,item\nc0,p0\n")):
        (folder / name).write_text(text)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    token = secrets.token_urlsafe(32)
    process = multiprocessing.get_context("spawn").Process(target=_server, args=(folder, items, users, token, processes, theirs))
    process.start()
    theirs.close()
    try:
        port, alone, servers = ours.recv()
        bodies = _bodies(int(rate * seconds), items, users)
        asyncio.run(open_load(port, token, bodies[:50], rate=rate, seed=1))
        before, load_before = sum(map(_processor_seconds, servers)), os.getloadavg()[0]
        answers = asyncio.run(open_load(port, token, bodies, rate=rate))
        spent = sum(map(_processor_seconds, servers)) - before
    finally:
        process.terminate()
        process.join()
    late = np.array([one.late for one in answers])
    return {
        "items": items,
        "requests": len(answers),
        "refused": sum(one.status != 200 for one in answers),
        "rate": rate,
        **{f"p{share} ms": round(float(np.percentile(late, share)), 2) for share in (50, 90, 99)},
        "processor ms a request": round(1e3 * spent / len(answers), 2),
        **{f"list alone, processor ms p{share}": round(float(np.percentile(alone, share)), 2) for share in (50, 99)},
        "load average": round(load_before, 1),
        "processes of the server": processes,
        "processors": os.cpu_count(),
    }


def _bodies(count: int, items: int, users: int) -> list[tuple[str, dict[str, Any]]]:
    random = np.random.default_rng(2)
    found: list[tuple[str, dict[str, Any]]] = []
    for _ in range(count):
        user, item = f"c{random.integers(users)}", f"p{random.integers(items)}"
        kind = random.random()
        if kind < 0.9:
            found.append(("/recommend", {"user": user}))
        elif kind < 0.94:
            found.append(("/similar", {"item": item}))
        elif kind < 0.97:
            found.append(("/explain", {"user": user, "item": item}))
        else:
            found.append(("/events", {"events": [{"user": user, "item": item, "liked": True}]}))
    return found


def _answers(folder: Path, items: int, users: int, *, joined: bool = False) -> PlatformAnswers:
    file: PlatformFile = load(folder / "drawn.toml")
    answers = PlatformAnswers(file, DrawnModels(items, users), EventLog(folder / "serving", joined=joined))
    answers.warm()
    return answers


def _server(folder: Path, items: int, users: int, token: str, processes: int, told: Connection) -> None:
    answers = _answers(folder, items, users)
    random, alone = np.random.default_rng(3), []
    with threadpool_limits(limits=1):
        for _ in range(_ALONE):
            asked = RecommendRequest(user=f"c{random.integers(users)}")
            began = time.thread_time()
            answers.recommend(asked)
            alone.append(1e3 * (time.thread_time() - began))
    listener = tcp_socket("127.0.0.1", 0)
    hosts = names_of(listener, "127.0.0.1")
    make = partial(_answers, folder, items, users, joined=True)
    with further_processes(processes - 1, make, listener, token=token, hosts=hosts, like=answers):
        others = [one.pid for one in multiprocessing.active_children()]
        told.send((listener.getsockname()[1], alone, [os.getpid(), *others]))
        serve(create_api(answers), listener, token=token, hosts=hosts)


def _processor_seconds(process: int | None) -> float:
    """Of all threads of a process, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
