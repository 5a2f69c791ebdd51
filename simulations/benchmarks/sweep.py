"""Which settings train best under privacy: each platform of a world by itself, one setting varied at a time or all at once.

    python -m simulations.benchmarks.sweep WORLD --out sweep.jsonl [--vary KEY=V,V ...] [--epsilon 8 2 inf] [--seeds 0 1 2]
    python -m simulations.benchmarks.sweep WORLD --out crossed.jsonl --cross KEY=V,V,V ... [--share part] [--seeds 0 1 2]
    python -m simulations.benchmarks.sweep WORLD --out FILE [--cross ...] --table

Every cell (platform, epsilon, seed, settings) is one private training from the start, as `fedfuse simulate` would run it for
that platform alone, and one line of the file; what is in the file is not run again. The table shows NDCG@10 as median and
range over seeds; of crossed settings (`simulations/benchmarks/fractional_design.py`) the mean by value, and which pairs act
together.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from client.config.platform_file import PlatformFile, load
from client.model.prepared_platform import PreparedPlatform, preparation_key, prepare
from shared.base.errors import PrivacyError
from shared.base.settings import Settings
from shared.protocol.quality import NDCG
from simulations.benchmarks.fractional_design import Share, cross, effects
from simulations.benchmarks.report import spread
from simulations.commands import settings_from
from simulations.run import Simulation, federate_virtually
from simulations.worlds.world import open_world

TRAINED = "rounds=10"
"""Without rounds a simulation shares preferences, and trains nothing."""
Variation = tuple[str, ...]
"""`key=value` words that are laid over the base."""


def variations(vary: Sequence[str]) -> list[Variation]:
    """The base, and every value of every key by itself.

    >>> variations(["model.rank=4,16"])
    [(), ('model.rank=4',), ('model.rank=16',)]
    >>> variations(["model.rank=4+model.alpha=8"])
    [(), ('model.rank=4', 'model.alpha=8')]
    """
    found: list[Variation] = [()]
    for entry in vary:
        if "+" in entry:
            found.append(tuple(entry.split("+")))
            continue
        key, _, values = entry.partition("=")
        found += [(f"{key}={value}",) for value in values.split(",")]
    return found


def sweep_cells(
    files: Sequence[PlatformFile], runs: Sequence[tuple[Variation, int]], epsilons: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What is to be run, by platform and then by settings, so that a platform is prepared as rarely as possible.

    Args:
        runs: Settings and a seed.
    """
    for file in files:
        for settings, seed in runs:
            for epsilon in epsilons:
                yield {"platform": file.name, "epsilon": epsilon, "seed": seed, "settings": list(settings)}


def run_sweep_cell(cell: Mapping[str, Any], platform: PreparedPlatform, settings: Settings, world: Path) -> dict[str, Any]:
    """One training; `ndcg` is None where the plan is refused as noise."""
    out = Path(tempfile.mkdtemp(prefix="sweep-"))
    began = time.monotonic()
    try:
        plan = Simulation(world=open_world(world), settings=settings, out=out)
        outcome = federate_virtually(plan, "sweep", {platform.name: platform}, out)
        tally = outcome.tallies[platform.name]
        assert tally.before is not None and tally.federated is not None
        found: dict[str, Any] = {"before": tally.before.quality[NDCG], "ndcg": tally.federated.quality[NDCG]}
        found["noise_multiplier"] = round(tally.joined.noise_multiplier, 3)
    except PrivacyError as error:
        found = {"before": None, "ndcg": None, "refused": error.found[:80]}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {**cell, **found, "seconds": round(time.monotonic() - began, 1)}


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The lines of a sweep's file; a line that a crash cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def sweep_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Settings down, platform and epsilon across; median (least to greatest) over seeds."""
    columns = sorted({(str(r["platform"]), str(r["epsilon"])) for r in results})
    table = Table(title="NDCG@10 by settings: median (range) over seeds")
    table.add_column("settings")
    for platform, epsilon in columns:
        table.add_column(f"{platform}\nepsilon {epsilon}", justify="right")
    for settings in dict.fromkeys(tuple(r["settings"]) for r in results):
        row = []
        for column in columns:
            own = [r for r in results if (str(r["platform"]), str(r["epsilon"])) == column and tuple(r["settings"]) == settings]
            values = [float(r["ndcg"]) for r in own if r["ndcg"] is not None]
            row.append(spread(values) or ("noise" if own else ""))
        table.add_row(" ".join(settings) or "base", *row)
    return table


def effects_of(results: Sequence[Mapping[str, Any]], factors: Collection[str], title: str, *, pairs: bool = True) -> Table:
    """What each of the crossed settings does; pairs only where they do more than their two (p < 0.05).

    Raises:
        ValueError: too many cells are missing.
    """
    words = [dict(word.split("=", 1) for word in r["settings"]) for r in results]
    kept = [{key: own[key] for key in factors} | {"seed": str(r["seed"])} for own, r in zip(words, results, strict=True)]
    found, unexplained = effects(kept, [float(r["ndcg"]) for r in results], pairs=pairs)
    table = Table(title=f"{title}; {unexplained:.4f} is unexplained in a single one")
    for name in ("setting", "mean NDCG@10 by value", "p"):
        table.add_column(name)
    for effect in found:
        if len(effect.keys) == 1 or effect.p < 0.05:
            means = "  ".join(f"{', '.join(values)}: {mean:.4f}" for values, mean in effect.means.items())
            table.add_row(" x ".join(effect.keys), means, f"{effect.p:.3f}")
    return table


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description="Which settings train best under privacy.")
    parser.add_argument("world", type=Path, help="folder with one platform file per platform")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; what is there is not run again")
    parser.add_argument("--base", nargs="*", default=[], help="key=value words under every cell")
    parser.add_argument("--vary", nargs="*", default=[], help="key=v,v,... one at a time; key=v+key=v together")
    parser.add_argument("--cross", nargs="*", default=[], help="key=v,v,v ... of equally many values: all at once")
    parser.add_argument(
        "--share",
        choices=get_args(Share),
        default="fraction",
        help="of the crossed cells: a part for what single settings do, a fraction for what pairs do besides, or all",
    )
    parser.add_argument("--epsilon", nargs="+", default=["8"], help="budgets; inf turns privacy off")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--platforms", nargs="*", help="only these")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    world = open_world(options.world)
    files = [load(path) for path in world.platforms]
    files = [file for file in files if not options.platforms or file.name in options.platforms]
    results = read_cells(options.out)
    factors = {key: values.split(",") for key, _, values in (entry.partition("=") for entry in options.cross)}
    if factors and options.vary:
        parser.error("--vary and --cross: one of them at a time")
    if options.share != "fraction" and not factors:
        parser.error(f"--share {options.share}: of what? Give --cross")
    try:
        runs = (
            cross(factors, options.seeds, share=options.share)
            if factors
            else [(settings, seed) for seed in options.seeds for settings in variations(options.vary)]
        )
    except ValueError as error:
        parser.error(f"--cross: {error}")
    todo = list(sweep_cells(files, [((*options.base, *settings), seed) for settings, seed in runs], options.epsilon))
    if not options.table:
        done = {_key(r) for r in results}
        results += _run([cell for cell in todo if _key(cell) not in done], {f.name: f for f in files}, options.world, options.out)
    console = Console(width=200)
    if factors:
        _print_effects(console, todo, results, factors, pairs=options.share != "part")
    else:
        console.print(sweep_table(results))


def _print_effects(
    console: Console,
    todo: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    factors: Collection[str],
    *,
    pairs: bool,
) -> None:
    found = {_key(r): r for r in results}
    for platform, epsilon in dict.fromkeys((cell["platform"], cell["epsilon"]) for cell in todo):
        own = [found.get(_key(cell)) for cell in todo if (cell["platform"], cell["epsilon"]) == (platform, epsilon)]
        there = [r for r in own if r is not None and r["ndcg"] is not None]
        missing = own.count(None)
        refused = len(own) - missing - len(there)
        title = f"{platform}, epsilon {epsilon}: {len(there)} cells"
        title += f", {refused} refused as noise" if refused else ""
        title += f", {missing} not run" if missing else ""
        try:
            console.print(effects_of(there, factors, title, pairs=pairs))
        except ValueError as error:
            console.print(f"{title}: {error}")


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps({key: cell[key] for key in ("platform", "epsilon", "seed", "settings")})


def _run(todo: list[dict[str, Any]], files: Mapping[str, PlatformFile], world: Path, out: Path) -> list[dict[str, Any]]:
    prepared: dict[str, tuple[str, PreparedPlatform]] = {}
    results = []
    cut_off = out.exists() and not out.read_bytes().endswith(b"\n")
    with Progress(console=Console(stderr=True)) as progress, out.open("a", encoding="utf-8") as lines:
        task = progress.add_task("cells", total=len(todo))
        if cut_off:
            lines.write("\n")
        for cell in todo:
            words = [TRAINED, *cell["settings"], f"seed={cell['seed']}", f"privacy.epsilon={cell['epsilon']}"]
            settings = settings_from(None, words)
            name, key = cell["platform"], preparation_key(settings)
            if prepared.get(name, ("", None))[0] != key:
                # One platform at a time in memory; the texts' features are on disk.
                prepared = {name: (key, prepare(files[name], settings, cache=out.with_suffix(".cache") / name))}
            results.append(run_sweep_cell(cell, prepared[name][1], settings, world))
            lines.write(json.dumps(results[-1]) + "\n")
            lines.flush()
            progress.advance(task)
    return results


if __name__ == "__main__":
    main()
