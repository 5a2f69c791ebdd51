"""What it costs to spread the same users over more platforms: alone, averaged with local noise, and by the secure sum.

    python -m simulations.benchmarks.federation WORLD --out FOLDER [--parts 1 4 8] [--epsilon 8 2] [--seeds 0 1 2]
    python -m simulations.benchmarks.federation WORLD --out FOLDER --table

Each platform of the world (a domain) is dealt to so many parts (`simulations/worlds/repartition.py`), and every method trains on
the parts with the same budget, number of private steps and sampling rate. One cell (parts, epsilon, seed, method, settings, and
the part that trains alone) is one line of FOLDER/results.jsonl; what is there is not run again. A domain's figure is the mean
of its parts' NDCG@10, weighted by declared users. A part whose plan is refused as noise keeps the model that it had before.

The table and FOLDER/federation.png show the median over seeds. Two things are judged: the secure sum over several parts stays
within 3% of its own figure at one part a domain, and is better there than the parts alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from client.config.platform_file import load
from client.model.prepared_platform import PreparedPlatform, preparation_key, prepare
from shared.base.errors import InputError, NoisyPlan
from shared.base.settings import Settings
from shared.protocol.quality import NDCG
from simulations.benchmarks.report import spread
from simulations.benchmarks.sweep import read_cells
from simulations.commands import settings_from
from simulations.run import Simulation, federate_virtually
from simulations.worlds.repartition import deal_world
from simulations.worlds.world import World, open_world

Cell = dict[str, Any]
SECURE, AVERAGED, ALONE = "secure-sum", "fedavg", "alone"
METHODS = (SECURE, AVERAGED, ALONE)
KEPT = 0.97
"""Part of its figure at one part a domain that the secure sum must keep at several."""
_KEY = ("parts", "epsilon", "seed", "method", "platform", "settings")


def words_of(method: str, *, steps: int, local_steps: int, settings: Sequence[str], secure: Sequence[str]) -> list[str]:
    """The settings of a method: the same number of private steps, however many rounds they take.

    >>> words_of("fedavg", steps=100, local_steps=10, settings=["model.rank=4"], secure=[])
    ['strategy=fedavg', 'rounds=10', 'training.local_steps=10', 'model.rank=4']
    """
    if method == SECURE:
        own = ["strategy=secure-sum", "privacy.noise=distributed", f"rounds={steps}", "training.local_steps=1"]
        return [*own, *settings, *secure]
    return ["strategy=fedavg", f"rounds={steps // local_steps}", f"training.local_steps={local_steps}", *settings]


def federation_cells(worlds: Mapping[int, World], options: argparse.Namespace) -> Iterator[Cell]:
    """What is to be run, by seed and parts, so that texts are read as rarely as possible."""
    for seed in options.seeds:
        for parts, world in worlds.items():
            names = _names(world, options)
            for epsilon in options.epsilon:
                for method in options.methods:
                    words = _words(method, options)
                    for platform in names if method == ALONE else [""]:
                        values = (parts, epsilon, seed, method, platform, words)
                        yield dict(zip(_KEY, values, strict=True))


def _names(world: World, options: argparse.Namespace) -> list[str]:
    """The parts of the domains that are asked for."""
    names = [path.stem for path in world.platforms]
    return [name for name in names if not options.platforms or domain_of(name) in options.platforms]


def _words(method: str, options: argparse.Namespace) -> list[str]:
    return words_of(method, steps=options.steps, local_steps=options.local_steps, settings=options.set, secure=options.secure_set)


def cell_settings(cell: Cell) -> Settings:
    """The settings that a cell is run with."""
    return settings_from(None, [*cell["settings"], f"seed={cell['seed']}", f"privacy.epsilon={cell['epsilon']}"])


def run_federation_cell(cell: Cell, platforms: Mapping[str, PreparedPlatform], world: World) -> Cell:
    """The federation, or the one platform, of a cell; `scores` is empty where the plan is refused as noise."""
    out = Path(tempfile.mkdtemp(prefix="federation-"))
    taking = {name: platforms[name] for name in ([cell["platform"]] if cell["platform"] else platforms)}
    began = time.monotonic()
    found: Cell
    try:
        plan = Simulation(world=world, settings=cell_settings(cell), out=out)
        outcome = federate_virtually(plan, "benchmark", taking, out)
        tallies = {name: tally for name, tally in outcome.tallies.items() if tally.before and tally.federated}
        found = {
            "scores": {
                name: {
                    "users": tally.users,
                    "before": tally.before.quality[NDCG] if tally.before else 0.0,
                    "ndcg": tally.federated.quality[NDCG] if tally.federated else 0.0,
                    "epsilon": tally.epsilon,
                    "noise_multiplier": round(tally.joined.noise_multiplier, 4),
                }
                for name, tally in tallies.items()
            }
        }
    except NoisyPlan as error:
        found = {"scores": {}, "refused": error.found[:100]}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return {**cell, **found, "seconds": round(time.monotonic() - began, 1)}


def domain_of(platform: str) -> str:
    """The platform that a part was dealt from.

    >>> domain_of("book-shop-12")
    'book-shop'
    """
    return platform.rpartition("-")[0]


def scores(results: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str, str, str], list[float]]:
    """(parts, method, epsilon, domain) -> NDCG@10 of every seed; none where the plan was refused as noise.

    Method "before" and epsilon "" is the untrained model, with the popularities that the secure sum pooled where it was run.
    """
    parts_of: dict[tuple[int, str, str, int], dict[str, tuple[float, float]]] = {}
    before: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    for result in sorted(results, key=lambda result: bool(result["method"] == SECURE)):
        at = (int(result["parts"]), str(result["method"]), str(result["epsilon"]), int(result["seed"]))
        held = parts_of.setdefault(at, {})
        for name, score in result["scores"].items():
            held[name] = (score["ndcg"], score["users"])
            before.setdefault((at[0], at[3]), {})[name] = (score["before"], score["users"])
    for (parts, seed), untrained in before.items():
        parts_of[parts, "before", "", seed] = untrained
    found: dict[tuple[int, str, str, str], list[float]] = {}
    for (parts, method, epsilon, seed), held in sorted(parts_of.items()):
        untrained = before.get((parts, seed), {})
        for domain in sorted({domain_of(name) for name in untrained}):
            names = [name for name in untrained if domain_of(name) == domain]
            missing = [name for name in names if name not in held]
            if missing:
                # A refused one is reported; one that has not run yet is no result.
                if _refused(results, parts, method, epsilon, seed, missing):
                    found.setdefault((parts, method, epsilon, domain), [])
                continue
            mean = sum(held[name][0] * held[name][1] for name in names) / sum(held[name][1] for name in names)
            found.setdefault((parts, method, epsilon, domain), []).append(mean)
    return found


def _refused(results: Iterable[Mapping[str, Any]], parts: int, method: str, epsilon: str, seed: int, names: list[str]) -> bool:
    at = (parts, method, epsilon, seed)
    said = [r for r in results if (r["parts"], r["method"], str(r["epsilon"]), r["seed"]) == at and not r["scores"]]
    return all(any(r["platform"] in ("", name) for r in said) for name in names)


def federation_table(found: Mapping[tuple[int, str, str, str], Sequence[float]]) -> Table:
    """Methods down; domains and parts across; median (least to greatest) over seeds."""
    columns = sorted({(domain, parts) for parts, _, _, domain in found})
    table = Table(title="NDCG@10: median (range) over seeds, by parts a domain")
    table.add_column("method")
    table.add_column("epsilon", justify="right")
    for domain, parts in columns:
        table.add_column(f"{domain}\n{parts} a domain", justify="right")
    for method, epsilon in sorted({(method, epsilon) for _, method, epsilon, _ in found}, key=_order):
        row = []
        for domain, parts in columns:
            values = found.get((parts, method, epsilon, domain))
            row.append("" if values is None else spread(values) or "noise")
        table.add_row(method, epsilon, *row)
    return table


def _order(line: tuple[str, str]) -> tuple[int, float]:
    return ["before", *METHODS[::-1]].index(line[0]), -float(line[1] or "inf")


def verdicts(found: Mapping[tuple[int, str, str, str], Sequence[float]]) -> list[Cell]:
    """For every domain, epsilon and number of parts above 1: what the secure sum keeps, and what it is over "alone"."""
    judged = []
    for (parts, method, epsilon, domain), values in sorted(found.items()):
        whole, alone = found.get((1, SECURE, epsilon, domain)), found.get((parts, ALONE, epsilon, domain))
        if method != SECURE or parts == 1 or not whole or not values:
            continue
        own = statistics.median(values)
        kept = own / statistics.median(whole)
        over = own / statistics.median(alone) if alone else None
        judged.append(
            {
                "domain": domain,
                "epsilon": epsilon,
                "parts": parts,
                "kept": round(kept, 4),
                "over_alone": None if over is None else round(over, 4),
                "ok": kept >= KEPT and (over is None or over > 1),
            }
        )
    return judged


def plot(found: Mapping[tuple[int, str, str, str], Sequence[float]], path: Path) -> None:
    """One panel a domain: NDCG@10 over the number of parts, a line per method and epsilon, ranges over seeds."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    domains = sorted({domain for *_, domain in found})
    figure, panels = pyplot.subplots(1, len(domains), figsize=(4.5 * len(domains), 4), squeeze=False, layout="constrained")
    lines = sorted({(method, epsilon) for _, method, epsilon, _ in found}, key=_order)
    colours = dict(zip(("before", *METHODS), ("0.6", "C2", "C1", "C0"), strict=True))
    dashes = dict(zip(dict.fromkeys(epsilon for _, epsilon in lines), (":", "-", "--", "-."), strict=False))
    for panel, domain in zip(panels[0], domains, strict=True):
        for method, epsilon in lines:
            points = sorted(
                (parts, values)
                for (parts, *line, of), values in found.items()
                if values and (*line, of) == (method, epsilon, domain)
            )
            middle = [statistics.median(values) for _, values in points]
            reach = [[m - min(v) for m, (_, v) in zip(middle, points, strict=True)]]
            reach.append([max(v) - m for m, (_, v) in zip(middle, points, strict=True)])
            label = f"{method}, ε = {epsilon}" if epsilon else method
            style = {"color": colours[method], "linestyle": dashes.get(epsilon, "-")}
            panel.errorbar([parts for parts, _ in points], middle, reach, marker="o", capsize=3, label=label, **style)
        panel.set(title=domain, xlabel="platforms a domain", xscale="log")
        panel.set_xticks(sorted({parts for parts, *_ in found}), [str(parts) for parts in sorted({parts for parts, *_ in found})])
        panel.minorticks_off()
    panels[0][0].set_ylabel("NDCG@10")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> int:
    """Run what is missing, print the table, draw the plot; 1 if the secure sum was judged and failed."""
    parser = argparse.ArgumentParser(description="What it costs to spread the same users over more platforms.")
    parser.add_argument("world", type=Path, help="folder with one platform file per platform")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl, the dealt worlds and the plot")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--epsilon", nargs="+", default=["8", "2"], help="budgets of every platform")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--platforms", nargs="*", help="only these domains")
    parser.add_argument("--local-steps", type=int, default=10, help="of a round without the secure sum")
    parser.add_argument(
        "--steps", type=int, default=100, help="private steps of a run, whatever the method; a multiple of --local-steps"
    )
    parser.add_argument("--set", nargs="*", default=["training.sample_rate=0.1"], help="key=value words of every method")
    parser.add_argument("--secure-set", nargs="*", default=[], help="key=value words of the secure sum alone")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--json", action="store_true", help="print figures and verdicts as JSON")
    options = parser.parse_args()
    if options.local_steps < 1 or options.steps < options.local_steps or options.steps % options.local_steps:
        raise InputError(f"steps is {options.steps}", where="--steps", do=f"a multiple of {options.local_steps}")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = options.out / "results.jsonl"
    results = read_cells(lines)
    if not options.table:
        if lines.exists() and not lines.read_bytes().endswith(b"\n"):
            lines.write_bytes(lines.read_bytes() + b"\n")  # a crash cut the last line off: the next is not to be glued to it
        worlds = {parts: _dealt(options.world, options.out / f"world-{parts}", parts) for parts in options.parts}
        done = {_key(result) for result in results}
        todo = [cell for cell in federation_cells(worlds, options) if _key(cell) not in done]
        for result in _run(
            todo, {parts: (world, _names(world, options)) for parts, world in worlds.items()}, options.out / "cache"
        ):
            results.append(result)
            with lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    # Lines of other settings may be in the same file; they are another experiment's.
    found = scores([result for result in results if result["settings"] == _words(str(result["method"]), options)])
    judged = verdicts(found)
    if found:
        plot(found, options.out / "federation.png")
    if options.json:
        figures = [dict(zip(("parts", "method", "epsilon", "domain", "ndcg"), (*at, v), strict=True)) for at, v in found.items()]
        sys.stdout.write(json.dumps({"figures": figures, "verdicts": judged}, indent=2) + "\n")
    else:
        console = Console(width=200)
        console.print(federation_table(found))
        for verdict in judged:
            console.print(
                f"{'ok    ' if verdict['ok'] else 'FAILED'} {verdict['domain']}, epsilon {verdict['epsilon']}, "
                f"{verdict['parts']} a domain: keeps {verdict['kept']:.1%} of its own figure at 1"
                + (f", {verdict['over_alone']:.3f} times alone" if verdict["over_alone"] else "")
            )
    return 0 if all(verdict["ok"] for verdict in judged) else 1


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps([cell[name] for name in _KEY])


def _dealt(world: Path, folder: Path, parts: int) -> World:
    """The dealt world, made if it is not there; dealing is the same every time, so a folder half made is made anew."""
    whole = folder.with_name(f"{folder.name}.whole")
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        deal_world(open_world(world), folder, parts=parts)
        whole.touch()
    return open_world(folder)


def _run(todo: Sequence[Cell], worlds: Mapping[int, tuple[World, list[str]]], cache: Path) -> Iterator[Cell]:
    held: tuple[tuple[int, str] | None, dict[str, PreparedPlatform]] = (None, {})
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("cells", total=len(todo))
        for cell in todo:
            settings = cell_settings(cell)
            key = (int(cell["parts"]), preparation_key(settings))
            if held[0] != key:
                held = (None, {})  # the last ones out of memory first
                world, names = worlds[key[0]]
                files = [load(path) for path in world.platforms if path.stem in names]
                # One cache for all: parts of a domain have the same items, and here nobody hides them from each other.
                held = (key, {file.name: prepare(file, settings, cache=cache) for file in files})
            yield run_federation_cell(cell, held[1], worlds[key[0]][0])
            progress.advance(task)


if __name__ == "__main__":
    sys.exit(main())
