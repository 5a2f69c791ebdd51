"""What the engine itself costs per message: our in-process grid against Flower's Ray simulation, in one run.

    python -m simulations.benchmarks.message_overhead [--platforms 20 100] [--rounds 8] [--megabytes 1.2] [--json]

Both run the same trivial ClientApp, which sends back the float32 array that it got, over the same number of virtual platforms.
Start-up is the time until the first round is over less an ordinary round; per message is the median round after it over
the number of platforms.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from rich.console import Console
from rich.table import Table

from simulations.in_process_grid import InProcessGrid


def echo_app() -> ClientApp:
    """A ClientApp that sends back what it got."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"echo": message.content["arrays"], "about": ConfigRecord({"ok": True})}), reply_to=message)

    return app


def rounds_of(grid: Grid, *, platforms: int, rounds: int, values: int) -> list[float]:
    """Seconds of each round in which every platform gets a fresh random array and returns it."""
    nodes: list[int] = []
    while len(nodes) < platforms:
        nodes = sorted(grid.get_node_ids())
        time.sleep(0.005)
    random = np.random.default_rng(0)
    seconds = []
    for _ in range(rounds):
        # Random, because Flower's messages are content-addressed and zeros look nearly free.
        record = RecordDict({"arrays": ArrayRecord({"x": Array(random.standard_normal(values, dtype=np.float32))})})
        began = time.perf_counter()
        pending = set(grid.push_messages([Message(record, node, MessageType.TRAIN) for node in nodes]))
        while pending:
            replies = list(grid.pull_messages(pending))
            for reply in replies:
                if reply.has_error():
                    raise RuntimeError(f"the engine failed: {reply.error.reason}")
                pending.discard(reply.metadata.reply_to_message_id)
            if not replies:
                time.sleep(0.002)
        seconds.append(time.perf_counter() - began)
    return seconds


def in_process(*, platforms: int, rounds: int, values: int) -> tuple[float, list[float]]:
    """Start-up seconds and the seconds of each round on our grid."""
    began = time.perf_counter()
    with InProcessGrid(app=echo_app(), nodes={node: {} for node in range(2, platforms + 2)}) as grid:
        seconds = rounds_of(grid, platforms=platforms, rounds=rounds, values=values)
    return time.perf_counter() - began - sum(seconds), seconds


def on_ray(*, platforms: int, rounds: int, values: int) -> tuple[float, list[float]]:
    """Start-up seconds and the seconds of each round on Flower's Ray simulation, with one CPU per client."""
    from flwr.simulation import run_simulation

    seconds: list[float] = []
    reached: list[float] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        reached.append(time.perf_counter())
        seconds.extend(rounds_of(grid, platforms=platforms, rounds=rounds, values=values))

    began = time.perf_counter()
    resources: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"logging_level": "error", "log_to_driver": False},
    }
    run_simulation(server_app=server, client_app=echo_app(), num_supernodes=platforms, backend_config=resources)
    if len(seconds) != rounds:
        raise RuntimeError("Flower's simulation ended early")
    # Ray starts beside the ServerApp: its start-up lies before `main` and in the first round.
    return reached[0] - began + max(0.0, seconds[0] - statistics.median(seconds[1:])), seconds


def measure_engine(*, platforms: int, rounds: int, megabytes: float) -> dict[str, Any]:
    """Both engines at one size; milliseconds per message are medians over the rounds after the first."""
    values = int(megabytes * 1e6 / 4)
    result: dict[str, Any] = {"platforms": platforms}
    for name, engine in (("process", in_process), ("ray", on_ray)):
        start, seconds = engine(platforms=platforms, rounds=rounds, values=values)
        result[name] = {
            "startup_seconds": round(start, 3),
            "ms_per_message": round(1000 * statistics.median(seconds[1:]) / platforms, 4),
        }
    result["ratio"] = round(result["ray"]["ms_per_message"] / result["process"]["ms_per_message"], 1)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="The engine's cost per message: in-process grid against Flower's Ray simulation."
    )
    parser.add_argument("--platforms", type=int, nargs="+", default=[20, 100], help="numbers of virtual platforms")
    parser.add_argument("--rounds", type=int, default=8, help="rounds per engine, the first not counted (at least 3)")
    parser.add_argument("--megabytes", type=float, default=1.2, help="size of the array that travels each way")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.rounds < 3 or min(options.platforms) < 1 or options.megabytes <= 0:
        parser.error("needs at least 3 rounds, 1 platform and a positive size")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    results = [measure_engine(platforms=count, rounds=options.rounds, megabytes=options.megabytes) for count in options.platforms]
    ratios = {f"{result['platforms']}_platforms": result["ratio"] for result in results}
    if options.json:
        json.dump(
            {"megabytes": options.megabytes, "cores": os.cpu_count(), "results": results, "ratios": ratios}, sys.stdout, indent=2
        )
        sys.stdout.write("\n")
        return
    table = Table(title=f"engine cost, {options.megabytes} MB each way, {os.cpu_count()} cores")
    for column in (
        "platforms",
        "in process\nms a message",
        "Ray\nms a message",
        "Ray / in process",
        "start-up s\nin process / Ray",
    ):
        table.add_column(column, justify="right")
    for result in results:
        ours, theirs = result["process"], result["ray"]
        start = f"{ours['startup_seconds']:.2f} / {theirs['startup_seconds']:.2f}"
        table.add_row(
            str(result["platforms"]),
            f"{ours['ms_per_message']:.3f}",
            f"{theirs['ms_per_message']:.2f}",
            f"{result['ratio']:.1f}x",
            start,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
