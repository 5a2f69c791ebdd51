"""What a phase costs in a deployment: three local platforms, each with its worker and its SuperNode, over authenticated TLS.

    python -m simulations.benchmarks.phase_cost [--rounds 8] [--platforms 3] [--stock] [--json]

A phase is one message to every platform and its answer. Rounds of `fedavg` are one phase each. Beyond its computing means: the
phase's wall time less the time in which the slowest worker computed. Where it goes is read from the logs of the three sides:

    out        from the phase's begin until the last worker begins: Flower's push, the SuperNode's look for work, a ClientApp
    computing  until the last worker ends (a worker that ends early waits in this column)
    back       until the coordinator has the last answer
    closing    the sum, the checkpoint, the journal

`--stock` runs Flower as it comes, with the same certificates, keys, number of platforms and bytes each way, and a ClientApp that
sends back what it gets; in the same session, after ours. Loopback only; a first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.base.logs import log_environment
from shared.base.settings import Settings, build
from shared.model.adapter import initial
from simulations.benchmarks.stock_flower import stock_seconds
from simulations.local_deployment import LocalDeployment
from simulations.worlds.generated import write_world

NAMES = ("shop", "video", "news")
RUN = "phase"
TRAINING = {"local_steps": 1, "views": 1, "sample_rate": 0.5}
COLUMNS = ("out", "computing", "back", "closing")


def plan(rounds: int) -> Settings:
    """Settings of the run that is measured: the default model, and as little computing as a round may have."""
    return build({"rounds": rounds, "training": TRAINING}, where="benchmark")


def measure_phase(root: Path, *, rounds: int, platforms: int) -> list[dict[str, float]]:
    """Seconds of each phase of training after the first, by column."""
    sources: dict[str, list[str | Path]] = {
        "shop": ["--data", "shop/events.csv", "--data", "shop/products.csv"],
        "video": ["--data", "video/ratings.parquet", "--data", "video/films.jsonl"],
        "news": ["--url", f"sqlite:///{root}/world/news/news.db"],
    }
    world = write_world(root / "world", seed=1, scale=0.6).folder
    names = [f"{NAMES[number % 3]}-{number}" for number in range(platforms)]
    with LocalDeployment(root, environment=log_environment("json")) as local:
        local.make()
        local.serve()
        for name in names:
            words = [word if str(word).startswith(("--", "sqlite")) else world / word for word in sources[name.partition("-")[0]]]
            local.add(name, *words, users=1000, epsilon=100.0)
            local.join(name)
        settings = [f"--set=training.{key}={value}" for key, value in TRAINING.items()]
        words = ["run", "--server", local.coordinator, "--name", RUN, "--rounds", str(rounds), "--platforms", str(platforms)]
        local.command(*words, *settings)
        return phases(local.events(RUN), [worked(root / name / "log" / "worker.log") for name in names])


def worked(log: Path) -> dict[int, tuple[float, float]]:
    """Round -> when a worker began and ended to compute its update, as its log says."""
    found = {}
    for text in log.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("event") == "answered" and "'train'" in line.get("message", ""):
            end = datetime.fromisoformat(line["ts"]).timestamp()
            seconds = float(line["message"].rpartition(" in ")[2].removesuffix(" s"))
            found[int(line["round"])] = (end - seconds, end)
    return found


def phases(events: list[dict[str, Any]], workers: list[dict[int, tuple[float, float]]]) -> list[dict[str, float]]:
    """Where the time of each training phase went, after the first."""
    done = {event["round"]: event["time"] for event in events if event["kind"] == "round"}
    answered: dict[int, float] = {}
    for event in events:
        if event["kind"] == "answered" and event["round"] in done and event["time"] <= done[event["round"]]:
            answered[event["round"]] = max(event["time"], answered.get(event["round"], 0.0))
    found = []
    for round_ in sorted(done)[1:]:
        began, ends = done[round_ - 1], [worker[round_] for worker in workers]
        begin, end = max(first for first, _ in ends), max(last for _, last in ends)
        parts = {
            "out": begin - began,
            "computing": end - begin,
            "back": answered[round_] - end,
            "closing": done[round_] - answered[round_],
        }
        wall, longest = done[round_] - began, max(last - first for first, last in ends)
        found.append({**parts, "wall": wall, "longest": longest, "beyond": wall - longest})
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Seconds of a phase over local SuperNodes, and where they go.")
    parser.add_argument("--rounds", type=int, default=8, help="the first is not counted")
    parser.add_argument("--platforms", type=int, default=3)
    parser.add_argument("--stock", action="store_true", help="run stock Flower as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.rounds < 3 or options.platforms < 1:
        parser.error("needs at least 3 rounds and 1 platform")
    values = sum(array.size for array in initial(plan(options.rounds)).values())
    with tempfile.TemporaryDirectory(prefix="fedfuse-phase-") as folder:
        root = Path(folder)
        found = measure_phase(root / "ours", rounds=options.rounds, platforms=options.platforms)
        stock = (
            stock_seconds(root / "stock", rounds=options.rounds, platforms=options.platforms, values=values)
            if options.stock
            else []
        )
    result: dict[str, Any] = {
        "platforms": options.platforms,
        "cores": os.cpu_count(),
        "values": values,
        "median": {key: round(statistics.median(phase[key] for phase in found), 2) for key in found[0]},
        "worst_beyond": round(max(phase["beyond"] for phase in found), 2),
        "phases": [{key: round(value, 2) for key, value in phase.items()} for phase in found],
    }
    if stock:
        result["stock"] = {"median": round(statistics.median(stock), 2), "phases": [round(one, 2) for one in stock]}
        result["ratio"] = round(result["stock"]["median"] / max(result["median"]["beyond"], 1e-9), 1)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    _show(result)


def _show(result: dict[str, Any]) -> None:
    table = Table(title=f"seconds of a phase, {result['platforms']} local platforms, {result['cores']} cores")
    for column in ("phase", *COLUMNS, "wall", "beyond computing"):
        table.add_column(column, justify="right")
    for number, phase in enumerate([*result["phases"], result["median"]], 2):
        name = "median" if phase is result["median"] else str(number)
        table.add_row(name, *(f"{phase[key]:.2f}" for key in (*COLUMNS, "wall", "beyond")))
    console = Console()
    console.print(table)
    if "stock" in result:
        console.print(f"stock Flower, nothing computed: {result['stock']['median']:.2f} s a phase, {result['ratio']:.1f}x ours")


if __name__ == "__main__":
    main()
