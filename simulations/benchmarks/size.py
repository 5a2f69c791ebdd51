"""What a platform's commands take as it grows: a generated platform of more and more users.

    python -m simulations.benchmarks.size --out FOLDER [--users 10000 100000 1000000] [--only check one ...] [--training] [--json]

A platform has 20 events a user and a twentieth as many items as users, from 10,000 to 50,000 (`fedfuse world new --users`). Each
measurement is a process of its own: wall time, processor time of all its threads, and the most memory that it held (VmHWM).
Results in FOLDER are not measured again; worlds stay there, so that a measurement that was taken out runs on the same rows.

- new: writing the world.
- check: `fedfuse check`.
- own: the first `fedfuse recommend`, which reads the tables, fits the own model and keeps it.
- one: the next `fedfuse recommend --user`, of another user.
- all: `fedfuse recommend --all`, ten items for everybody; on the model that was kept.
- preferences: reading, and the bounded sum of what users like together of the 4,096 most popular items.
- training: ten rounds of an adapter (with --training).

On a shared machine the wall time tells of its other users, too: go by the processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LEAST_ITEMS, MOST_ITEMS, EVENTS = 10_000, 50_000, 20
_SUMMED = 4096
TRAINING = "training"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one process took.

    Args:
        wall, processor: Seconds; the processor's of all threads and of child processes.
        peak: Most memory held, in bytes.
        disk: Bytes that it left, but for the world.
    """

    users: int
    items: int
    name: str
    wall: float
    processor: float
    peak: int
    disk: int


def items_of(users: int) -> int:
    """Items of a platform of so many users.

    >>> items_of(10_000), items_of(400_000), items_of(1_000_000)
    (10000, 20000, 50000)
    """
    return min(MOST_ITEMS, max(LEAST_ITEMS, users // EVENTS))


def _new(folder: Path, users: int) -> None:
    sizes = ["--users", users, "--items", items_of(users), "--events", EVENTS * users]
    _command("world", "new", folder / "world", *sizes)


def _check(folder: Path, users: int) -> None:
    _command("check", folder / "world" / "shop.toml")


def _own(folder: Path, users: int) -> None:
    shutil.rmtree(folder / "world" / ".fedfuse", ignore_errors=True)
    _command("recommend", "--platform", folder / "world" / "shop.toml", "--user", _user(0, users))


def _one(folder: Path, users: int) -> None:
    _command("recommend", "--platform", folder / "world" / "shop.toml", "--user", _user(users // 2, users))


def _all(folder: Path, users: int) -> None:
    _command("recommend", "--platform", folder / "world" / "shop.toml", "--all", "--out", folder / "everybody.parquet")


def _preferences(folder: Path, users: int) -> None:
    import numpy as np

    from client.config.platform_file import load
    from client.model.prepared_platform import read_rows
    from client.privacy.preference_release import bounded_preferences
    from shared.base.settings import Settings

    rows = read_rows(load(folder / "world" / "shop.toml"), Settings())
    counts = np.bincount(rows.split.train.values, minlength=rows.tables.items)
    most = min(_SUMMED, rows.tables.items)
    popular = np.argsort(-counts, kind="stable")[:most]
    place = np.full(rows.tables.items, -1)
    place[popular] = np.arange(most)
    direction = np.sqrt(counts[popular]).astype(np.float32)
    bounded_preferences(rows.split.train, place, direction=direction, items=most)


def _training(folder: Path, users: int) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    _command("simulate", folder / "world", "--out", folder / "run", "--strategy", "fedavg", "--rounds", 10)


MEASURES: Mapping[str, Callable[[Path, int], None]] = {
    "new": _new,
    "check": _check,
    "own": _own,
    "one": _one,
    "all": _all,
    "preferences": _preferences,
    TRAINING: _training,
}
"""In the order in which they run: the later ones need what the earlier ones left."""


def measured(folder: Path, name: str, users: int) -> Measured:
    """Run one measurement in a process of its own, where it has not been run.

    Raises:
        RuntimeError: it failed; what it said is on standard error.
    """
    place = folder / f"{name}.json"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spent = folder / f".{name}.spent"
        before, began = _bytes_in(folder), time.monotonic()
        call = [sys.executable, "-m", "simulations.benchmarks.size", "--child", name, "--out", str(folder), "--users", str(users)]
        code = subprocess.run([*call, "--spent", str(spent)], check=False).returncode  # noqa: S603 -- this module, in a new process
        wall = time.monotonic() - began
        if code:
            raise RuntimeError(f"{name} of {users:,} users ended with code {code}")
        found = json.loads(spent.read_text(encoding="utf-8"))
        spent.unlink()
        disk = 0 if name == "new" else max(0, _bytes_in(folder) - before)
        made = Measured(users=users, items=items_of(users), name=name, wall=round(wall, 2), disk=disk, **found)
        draft = place.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(made)), encoding="utf-8")
        draft.replace(place)
    return Measured(**json.loads(place.read_text(encoding="utf-8")))


def size_table(found: Sequence[Measured]) -> Table:
    """Measurements by users: wall and processor seconds, and memory."""
    users = sorted({one.users for one in found})
    table = Table(title="wall s / processor s / peak GB / disk GB left")
    table.add_column("")
    for count in users:
        table.add_column(f"{count:,} users, {items_of(count):,} items", justify="right")
    by_place = {(one.name, one.users): one for one in found}
    for name in MEASURES:
        cells = [_cell(by_place.get((name, count))) for count in users]
        if any(cells):
            table.add_row(name, *cells)
    return table


def _cell(one: Measured | None) -> str:
    if one is None:
        return ""
    rate = f" ({one.users / one.wall:,.0f} users/s)" if one.name == "all" else ""
    return f"{one.wall:.1f} / {one.processor:.1f} / {one.peak / 1e9:.2f} / {one.disk / 1e9:.2f}{rate}"


def _user(number: int, users: int) -> str:
    """One of the ids: all numbers below that of users are taken (`simulations/worlds/large.py`)."""
    return f"C{number:0{len(str(users))}d}"


def _command(*words: Any) -> None:
    import fedfuse

    with contextlib.redirect_stdout(io.StringIO()):
        code = fedfuse.app([str(word) for word in words], standalone_mode=False)
    if code:
        raise SystemExit(code)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _spent() -> dict[str, Any]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {"processor": round(processor, 2), "peak": 1024 * int(status["VmHWM"].split()[0])}


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), help="these measurements; `new` goes first")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=list(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--spent", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.child:
        MEASURES[options.child](options.out, options.users[0])
        options.spent.write_text(json.dumps(_spent()), encoding="utf-8")
        return
    asked = options.only or [name for name in MEASURES if name != TRAINING or options.training]
    found = []
    for users in options.users:
        for name in dict.fromkeys(["new", *(name for name in MEASURES if name in asked)]):
            print(f"{name} of {users:,} users", file=sys.stderr, flush=True)
            found.append(measured(options.out / f"{users}", name, users))
    if options.json:
        json.dump([asdict(one) for one in found], sys.stdout, indent=1)
        return
    console = Console()
    console.width = max(console.width, 140)
    console.print(size_table(found))


if __name__ == "__main__":
    main()
