"""A study: one world under several settings and seeds, a run each; what is there is not run again, what broke off goes on.

- OUT/runs/NAME/: a run folder each, as `fedfuse simulate --per-user` writes it, without the caches of texts.
- OUT/results.json and OUT/results.csv: every figure with its interval over users and seeds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.evaluation.user_bootstrap import Estimate
from client.recommender.model_comparison import COMPARED, MODELS
from server.monitoring.run_events import Event
from shared.base.atomic_files import write_whole
from shared.base.errors import InputError, PrivacyError
from shared.base.settings import Settings
from simulations.run import METRICS, USERS, Progress, Simulation, run_simulation
from simulations.run_folder import RECORD, recorded_run, require_same_run
from simulations.seed_bootstrap import crossed_estimates
from simulations.worlds.world import World

RUNS, RESULTS = "runs", "results"
GAIN = "fused - own"

_MOST_SEEDS = 10_000

Values = Mapping[str, str]
"""Setting -> its value, as it was typed."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of a study.

    Args:
        values: What is varied, without the seed.
    """

    values: Values
    seed: int

    @property
    def words(self) -> list[str]:
        """As `--set` takes them."""
        return [*(f"{key}={value}" for key, value in self.values.items()), f"seed={self.seed}"]

    @property
    def name(self) -> str:
        """Of its folder."""
        text = ",".join(self.words)
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return f"{re.sub(r'[^A-Za-z0-9=.,_+-]', '_', text)[:80]}-{digest}"


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """One figure over the seeds of a setting.

    Args:
        model: "own", "global", "fused", or "fused - own".
        estimate: With its interval over users and seeds.
        by_seed: Seed -> its mean.
        users: Held-out users under any seed.
    """

    values: Values
    platform: str
    model: str
    metric: str
    estimate: Estimate
    by_seed: Mapping[int, float]
    users: int


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What a study found.

    Args:
        refused: Name of a run -> why it could not be planned.
    """

    figures: Sequence[StudyFigure]
    refused: Mapping[str, str]

    def write(self, out: Path) -> None:
        """Write `results.json` and `results.csv`."""
        rows = [
            {
                **one.values,
                "platform": one.platform,
                "model": one.model,
                "metric": one.metric,
                **one.estimate.as_dict(),
                "seeds": len(one.by_seed),
                "users": one.users,
            }
            for one in self.figures
        ]
        seeds = [{str(seed): round(mean, 6) for seed, mean in one.by_seed.items()} for one in self.figures]
        found = {
            "figures": [{**row, "by_seed": own} for row, own in zip(rows, seeds, strict=True)],
            "refused": dict(self.refused),
        }
        write_whole(out / f"{RESULTS}.json", (json.dumps(found, indent=2) + "\n").encode())
        text = io.StringIO()
        if rows:
            table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        write_whole(out / f"{RESULTS}.csv", text.getvalue().encode())


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds from "0..4" or "0,1,7", ascending, each once.

    Raises:
        InputError: it is neither.

    >>> seeds_of("0..4"), seeds_of("7,1,1")
    ((0, 1, 2, 3, 4), (1, 7))
    """
    try:
        ends = [part.partition("..") for part in text.split(",")]
        ranges = [range(int(first), int(last if dots else first) + 1) for first, dots, last in ends]
    except ValueError:
        ranges = []
    few = sum(max(0, one.stop - one.start) for one in ranges) <= _MOST_SEEDS
    found = {seed for one in ranges for seed in one} if few else set()
    if not found or min(found) < 0:
        raise InputError(f"{text!r} are no seeds", where="--seeds", do="write 0..4, or 0,1,7")
    return tuple(sorted(found))


def varied(over: Sequence[str]) -> list[Values]:
    """Every combination of values of `key=a,b,c` words; values that contain commas are separated by semicolons.

    Raises:
        InputError: one is no such word, or a setting comes twice.

    >>> varied(["privacy.epsilon=1,8", "strategy=ffa"])
    [{'privacy.epsilon': '1', 'strategy': 'ffa'}, {'privacy.epsilon': '8', 'strategy': 'ffa'}]
    >>> varied(["model.targets=query;query,value"])
    [{'model.targets': 'query'}, {'model.targets': 'query,value'}]
    >>> varied([])
    [{}]
    """
    choices: dict[str, list[str]] = {}
    for word in over:
        key, equals, text = word.partition("=")
        several = [value.strip() for value in text.split(";" if ";" in text else ",")]
        if not equals or not key.strip() or not all(several):
            raise InputError(f"{word!r} is not key=a,b,c", where="--over", do="write --over privacy.epsilon=1,4,8")
        if key.strip() in choices or key.strip() == "seed":
            raise InputError(f"{key.strip()!r} comes twice", where="--over", do="name each setting once; seeds by --seeds")
        choices[key.strip()] = list(dict.fromkeys(several))
    return [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]


def run_study(
    world: World,
    out: Path,
    runs: Sequence[StudyRun],
    settings_for: Callable[[Sequence[str]], Settings],
    *,
    begins: Callable[[StudyRun, int], None] | None = None,
    events: Callable[[Event], None] | None = None,
    progress: Progress | None = None,
) -> StudyResults:
    """Run what is not there yet, and put all results together.

    Args:
        settings_for: `key=value` words -> settings, the words over what the study has in common.
        begins: Called with each run that is begun or resumed, and how many are done.

    Raises:
        InputError: a setting is wrong, or a run in `out` began otherwise.
        StorageError: something cannot be written.
    """
    # Every setting is looked at before the first run, which may take hours.
    planned = [(run, settings_for(run.words)) for run in runs]
    refused: dict[str, str] = {}
    for done, (run, settings) in enumerate(planned):
        folder = out / RUNS / run.name
        begun = (folder / RECORD).exists()
        if begun:
            require_same_run(recorded_run(folder), world=world.folder, settings=settings, where=folder)
        if (folder / METRICS).exists():
            continue
        if begins:
            begins(run, done)
        try:
            plan = Simulation(world=world, settings=settings, out=folder, resume=begun, per_user=True)
            run_simulation(plan, events=events, progress=progress)
        except PrivacyError as error:
            refused[run.name] = error.found
            continue
        # Texts' features are made from the platform's rows again whenever they are wanted, and are the most of a run's bytes.
        for cache in (folder / "state").glob("*/trunk"):
            shutil.rmtree(cache, ignore_errors=True)
    found = StudyResults(figures=list(_figures(out, [run for run in runs if run.name not in refused])), refused=refused)
    found.write(out)
    return found


def _figures(out: Path, runs: Sequence[StudyRun]) -> Iterator[StudyFigure]:
    by_values: dict[tuple[tuple[str, str], ...], list[StudyRun]] = {}
    for run in runs:
        by_values.setdefault(tuple(run.values.items()), []).append(run)
    for values, several in by_values.items():
        tables = {run.seed: _tables(out / RUNS / run.name / USERS) for run in several}
        for platform in sorted({name for one in tables.values() for name in one}):
            own = {seed: one[platform] for seed, one in tables.items() if platform in one}
            yield from _of_platform(dict(values), platform, own)


def _tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {path.stem: pl.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def _of_platform(values: Values, platform: str, tables: Mapping[int, pl.DataFrame]) -> Iterator[StudyFigure]:
    users = {
        user: place for place, user in enumerate(sorted({user for one in tables.values() for user in one["user"].to_list()}))
    }
    places = [[users[user] for user in table["user"].to_list()] for table in tables.values()]

    def crossed(column: str) -> NDArray[np.float64]:
        grid = np.full((len(tables), len(users)), np.nan)
        for row, place, table in zip(grid, places, tables.values(), strict=True):
            if column in table.columns:
                row[place] = table[column].to_numpy()
        return grid

    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for metric in COMPARED:
        grids = {model: crossed(f"{model} {metric}") for model in MODELS}
        # Where nothing that was released is of use, own and fused are one.
        grids[GAIN] = np.where(np.isnan(grids["fused"]), 0.0 * grids["own"], grids["fused"] - grids["own"])
        found |= {(model, metric): grid for model, grid in grids.items() if not np.isnan(grid).all()}
    for ((model, metric), grid), estimate in zip(found.items(), crossed_estimates(list(found.values())), strict=True):
        means = {seed: float(np.nanmean(row)) for seed, row in zip(tables, grid, strict=True) if not np.isnan(row).all()}
        yield StudyFigure(
            values=values, platform=platform, model=model, metric=metric, estimate=estimate, by_seed=means, users=len(users)
        )
