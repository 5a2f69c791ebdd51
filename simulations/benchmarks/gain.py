"""What a platform gains by joining: its own model, what the federation publishes, and both fused, on its held-out items.

    python -m simulations.benchmarks.gain WORLD... --out FOLDER [--dealt 1 8 64] [--epsilon 1 2 8] [--seeds 0 1 2]
        [--newcomers 0 50 200] [--baselines] [--strategy NAME] [--json] [--plot FILE.png]

Dealt to 1, all platforms of a world form one federation as they are; a single platform, or platforms without a common item, have
the own model alone. Dealt to more, every platform by itself becomes so many platforms of a part of its users each
(`simulations/worlds/repartition.py`), which form a federation; where fewer than 50 users each would remain it is left out. Noise
is shared under the secure sum where three platforms or more take part, else local.

A row has the mean of a model over the users of a segment, of all parts of a platform together; a gain is fused / own - 1 over all
seeds' users, with a 95 % interval by bootstrap over users. One cell (platform, dealt, epsilon, seed) is one file in FOLDER; what
is there is not run again. The own model does not depend on epsilon and is fitted once.

--newcomers measures a platform that joins after a run, with so many users (`simulations/benchmarks/newcomers.py`), for every
dealing to more than 1: a federation of its own, since the newcomer's users are taken from it. --baselines fits what anybody
could run on a platform's own rows (`simulations/benchmarks/baselines.py`), beside the own model; `--epsilon` without a number
then runs nothing else.

With a taste map (`--set preferences.map=64`) every platform's texts are encoded, and all models read them; the newcomers' do not.

With a strategy that trains (`--strategy fedavg`; ten rounds, others by `--set rounds=20`) every model reads texts. `untrained` is
the fused model without the adapter: what fused has above it is what training adds. `--set preferences.items=1024` shares
preferences in the same run, from the same budget.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from threadpoolctl import threadpool_limits  # type: ignore[import-not-found,import-untyped,unused-ignore]

from client.config.platform_file import load
from client.model.prepared_platform import PlatformRows, prepare, read_rows
from client.recommender.frozen_texts import frozen_item_vectors
from client.recommender.fused_model import fused_with
from client.recommender.model_comparison import RankedUsers, rank_users
from client.recommender.own_model import OwnFit, UserScores, fit_own
from client.recommender.pulled_model import ModelFolder, holds_model, open_model, use_model
from server.registry.publication import MODEL
from shared.base.settings import Settings
from simulations.benchmarks.baselines import fit_baselines
from simulations.benchmarks.gain_report import (
    PREFERENCES,
    UNTRAINED,
    WIDTH,
    GainCell,
    baseline_table,
    gain_table,
    plot_gains,
    save_cell,
    summary_of,
    training_table,
)
from simulations.benchmarks.newcomers import LEAST_USERS, further_parts, newcomer_users, rank_newcomer
from simulations.benchmarks.sweep import TRAINED
from simulations.commands import settings_from
from simulations.run import Simulation, federate_virtually
from simulations.worlds.repartition import deal_world
from simulations.worlds.world import World, open_world

_RUN = "gain"


def gain_cells(worlds: Sequence[Path], options: argparse.Namespace) -> Iterator[GainCell]:
    """What is to be run: all of one dealing one after the other, so that own models are fitted once."""
    for folder in worlds:
        files = [load(path) for path in open_world(folder).platforms]
        for dealt in options.dealt:
            groups = [("+".join(file.name for file in files), 0)] if dealt == 1 else [(file.name, file.users) for file in files]
            for name, users in groups:
                if dealt > 1 and users < LEAST_USERS * dealt:
                    _say(f"{name} dealt to {dealt}: fewer than {LEAST_USERS} users each, left out")
                    continue
                later = tuple(options.newcomers) if dealt > 1 else ()
                if later and further_parts(users, dealt, later) is None:
                    _say(f"{name} dealt to {dealt}: fewer than {LEAST_USERS} users each beside a newcomer, which is left out")
                    later = ()
                for seed in options.seeds:
                    facts = {"world": str(folder), "platform": name, "dealt": dealt, "seed": seed, "strategy": options.strategy}
                    for epsilon in [*options.epsilon, *([None] if options.baselines else [])]:
                        yield GainCell(**facts, epsilon=epsilon)
                    for epsilon in options.epsilon if later else ():
                        yield GainCell(**facts, epsilon=epsilon, newcomers=later)


class DealtPlatforms:
    """The platforms of one federation, with their own models.

    Args:
        scratch: Folder for the dealt files.
        words: Settings of the runs, as KEY=VALUE.
    """

    def __init__(self, cell: GainCell, scratch: Path, words: Sequence[str] = ()) -> None:
        self.key = (cell.world, cell.platform, cell.dealt, cell.seed, cell.newcomers)
        world, plain = open_world(Path(cell.world)), _settings(cell, words)
        self._model = plain.model
        self.parts = cell.dealt
        if cell.dealt > 1:
            (path,) = (path for path in world.platforms if load(path).name == cell.platform)
            if cell.newcomers:
                self.whole = read_rows(load(path), plain)
                self.parts += further_parts(self.whole.file.users, cell.dealt, cell.newcomers) or 0
            world = deal_world(World(folder=world.folder, platforms=(path,)), scratch, parts=self.parts, seed=cell.seed)
            inside = {f"{cell.platform}-{part + 1}" for part in range(cell.dealt)}
            world = World(folder=world.folder, platforms=tuple(path for path in world.platforms if load(path).name in inside))
        self.world = world
        self.platforms: dict[str, PlatformRows] = {
            rows.name: rows for rows in (read_rows(load(path), plain) for path in world.platforms)
        }
        self._own: dict[tuple[str, bool], OwnFit] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self.cache = scratch.with_name(f"{scratch.name}-trunk")
        """Folder of the trunk cache: texts, and their features, are the same in all runs."""

    def own(self, name: str, *, seed: int, texts: bool = False) -> OwnFit:
        """A platform's own model."""
        if (name, texts) not in self._own:
            rows = self.platforms[name]
            vectors = self.vectors(name) if texts else None
            self._own[name, texts] = fit_own(rows.tables, rows.split, text=vectors, seed=seed)
        return self._own[name, texts]

    def vectors(self, name: str) -> NDArray[np.float32]:
        """Vectors of a platform's items' texts by the frozen backbone, float32 (items, width)."""
        if name not in self._vectors:
            rows = self.platforms[name]
            self._vectors[name] = frozen_item_vectors(rows.file, rows.tables, self._model, cache=self.cache)
        return self._vectors[name]


def run_cell(cell: GainCell, dealt: DealtPlatforms, words: Sequence[str], scratch: Path) -> dict[str, RankedUsers]:
    """One federation, if the cell has an epsilon, and every platform's users ranked by all models."""
    model = None if cell.epsilon is None else _published(cell, dealt, words, scratch)
    # Matrices of a part are small: a second thread is waited for longer than it helps, above all on a busy machine.
    with threadpool_limits(1 if cell.dealt > 1 else None):
        if cell.newcomers:
            users = newcomer_users(dealt.whole, dealt=cell.dealt, parts=dealt.parts, seed=cell.seed)
            shared = None if model is None else model.preferences
            return rank_newcomer(dealt.whole, users, shared, sizes=cell.newcomers, seed=cell.seed)
        if cell.epsilon is None:
            return {name: _beside_baselines(dealt, name, seed=cell.seed) for name in dealt.platforms}
        return {name: _ranked(dealt, name, model, scratch, seed=cell.seed) for name in dealt.platforms}


def _published(cell: GainCell, dealt: DealtPlatforms, words: Sequence[str], scratch: Path) -> ModelFolder | None:
    """What the federation publishes; one platform is none."""
    if len(dealt.platforms) < 2:
        return None
    noise = "distributed" if len(dealt.platforms) >= 3 else "local"
    settings = _settings(cell, [f"privacy.noise={noise}", *words])
    platforms = dealt.platforms
    if settings.trains:
        platforms = {
            name: prepare(rows.file, settings, cache=dealt.cache, tables=rows.tables, split=rows.split)
            for name, rows in platforms.items()
        }
    federate_virtually(Simulation(world=dealt.world, settings=settings, out=scratch), _RUN, platforms, scratch)
    return open_model(scratch / MODEL) if holds_model(scratch / MODEL) else None


def _ranked(dealt: DealtPlatforms, name: str, model: ModelFolder | None, scratch: Path, *, seed: int) -> RankedUsers:
    """A platform's users by every model that it has; what reads texts is in all of them but the global one."""
    rows = dealt.platforms[name]
    reads = model is not None and (model.adapter is not None or model.taste is not None)
    own = dealt.own(name, seed=seed, texts=reads)
    models: dict[str, UserScores] = {"own": own.model, "fused": own.model}
    if model is not None and model.says_something(rows.tables):
        state = scratch / "state" / name / "runs" / f"{_RUN}.safetensors"
        usable = use_model(model, rows.file, rows.tables, cache=dealt.cache, state=state, say=_say)
        factors, popularity = usable.beside_own(rows.tables, seed=seed)
        released = fused_with(own, factors=factors, popularity=popularity, taste=usable.taste)
        models |= {"fused": released, "global": usable.alone(own.validation.histories)}
        if usable.own_text is not None:
            adapted = usable.own_text.items
            fused = fused_with(own, factors=factors, popularity=popularity, adapted=adapted, taste=usable.taste)
            models |= {"fused": fused, UNTRAINED: released}
    return rank_users(models, rows.split)


def _beside_baselines(dealt: DealtPlatforms, name: str, *, seed: int) -> RankedUsers:
    rows = dealt.platforms[name]
    found = fit_baselines(rows.tables, rows.split, seed=seed, tell=lambda what: _say(f"  {name}: {what}"))
    return rank_users({"own": dealt.own(name, seed=seed).model, **found}, rows.split)


def _settings(cell: GainCell, words: Sequence[str]) -> Settings:
    epsilon = [] if cell.epsilon is None else [f"privacy.epsilon={cell.epsilon:g}"]
    rounds = [] if cell.strategy == PREFERENCES else [TRAINED]
    return settings_from(None, [f"strategy={cell.strategy}", *rounds, *epsilon, f"seed={cell.seed}", *words])


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dealt", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--epsilon", type=float, nargs="*", default=[1.0, 2.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--newcomers", type=int, nargs="+", default=[], metavar="USERS")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--strategy", default=PREFERENCES, help="preferences, or one that trains, too")
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE", help="any setting of the runs")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args(arguments)
    names = Counter(load(path).name for folder in options.worlds for path in open_world(folder).platforms)
    if several := sorted(name for name, count in names.items() if count > 1):
        parser.error(f"platforms of several worlds are called {', '.join(several)}: give each world its own --out")
    options.out.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in gain_cells(options.worlds, options) if not (options.out / f"{cell.name}.npz").exists()]
    dealt: DealtPlatforms | None = None
    with tempfile.TemporaryDirectory() as temporary:
        for at, cell in enumerate(cells, start=1):
            _say(f"{at} of {len(cells)}: {cell.name}")
            folder = Path(temporary) / cell.name
            if dealt is None or dealt.key != (cell.world, cell.platform, cell.dealt, cell.seed, cell.newcomers):
                dealt = DealtPlatforms(cell, Path(temporary) / f"world-{at}", options.words)
            save_cell(options.out / f"{cell.name}.npz", cell, run_cell(cell, dealt, options.words, folder))
            shutil.rmtree(folder, ignore_errors=True)
    found = summary_of(options.out, strategy=options.strategy)
    if options.plot:
        plot_gains(found, options.plot)
    if options.json:
        json.dump(found, sys.stdout, indent=1, allow_nan=False)
        return
    console = Console()
    console.width = max(console.width, WIDTH)
    for table in (gain_table(found), training_table(found), baseline_table(found)):
        if table is not None:
            console.print(table)


if __name__ == "__main__":
    main()
