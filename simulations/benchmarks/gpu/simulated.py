"""A federation of three platforms as `fedfuse simulate` runs it, on the first GPU that is seen or on the processor.

    python -m simulations.benchmarks.gpu.simulated FOLDER [--backbone minilm|FOLDER] [--users 500] [--rounds 2]
        [--set KEY=VALUE ...]

Prints JSON. The world lies in the folder and is written by the first run; hiding the GPUs (`CUDA_VISIBLE_DEVICES=`) makes the
next one the same on the processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from shared.model.backbone import EMBEDDED
from shared.model.encoder import devices
from simulations.commands import settings_from
from simulations.run import Simulation, run_simulation
from simulations.worlds.large import LargeSizes, write_large_world
from simulations.worlds.world import World, open_world

PLATFORMS = 3


def world_in(folder: Path, *, users: int) -> World:
    """The world of that folder, written there before if it is not there."""
    if not folder.exists():
        # Under another name until it is whole: a step that is cut off leaves no half of a world to the next.
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            sizes = LargeSizes(users=users, items=max(200, users), events=20 * users, platforms=PLATFORMS, in_common=0.5)
            write_large_world(Path(scratch) / "world", sizes)
            (Path(scratch) / "world").rename(folder)
    return open_world(folder)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description="A federation of three platforms, timed.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=500, help="of each platform")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backbone", default=EMBEDDED)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="any setting, as `fedfuse simulate --set`")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    world = world_in(options.folder / "world", users=options.users)
    words = [f"rounds={options.rounds}", f"model.backbone={options.backbone}", "strategy=fedavg", *options.set]
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        plan = Simulation(world=world, settings=settings_from(None, words), out=Path(scratch) / "run")
        began = time.perf_counter()
        metrics = run_simulation(plan, events=lambda event: print(event, file=sys.stderr))
        seconds = time.perf_counter() - began
    found = {
        "device": str(devices()[0]),
        "backbone": Path(options.backbone).name,
        "platforms": PLATFORMS,
        "users": options.users,
        "rounds": options.rounds,
        "run_seconds": round(seconds, 2),
        "federated": {name: platform["federated"] for name, platform in metrics["platforms"].items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
