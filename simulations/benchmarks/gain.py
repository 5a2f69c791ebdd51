"""What a platform gains by joining: its own model, what the federation publishes, and both fused, on its held-out items.

    python -m simulations.benchmarks.gain WORLD... --out FOLDER [--dealt 1 8 64] [--epsilon 1 2 8] [--seeds 0 1 2] [--json]

Dealt to 1, all platforms of a world form one federation as they are. Dealt to more, every platform by itself becomes so many
platforms of a part of its users each (`simulations/worlds/repartition.py`), which form a federation; where fewer than 50 users
each would remain it is left out. Noise is shared under the secure sum where three platforms or more take part, else local.

A row has the mean of a model over the users of a segment, of all parts of a platform together; a gain is fused / own - 1 over all
seeds' users, with a 95 % interval by bootstrap over users. One cell (platform, dealt, epsilon, seed) is one file in FOLDER; what
is there is not run again. The own model does not depend on epsilon and is fitted once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-not-found,import-untyped,unused-ignore]

from client.config.platform_file import load
from client.model.prepared_platform import PlatformRows, read_rows
from client.recommender.fused_model import OwnFit, fit_own, fused_with
from client.recommender.global_model import GlobalModel, released_on
from client.recommender.model_comparison import COMPARED, RankedUsers, rank_users
from client.recommender.own_model import UserScores
from shared.base.settings import Settings
from shared.preferences.shared_preferences import FILE, SharedPreferences, load_preferences
from shared.protocol.quality import NDCG
from simulations.commands import settings_from
from simulations.run import Simulation, federate_virtually
from simulations.worlds.repartition import deal_world
from simulations.worlds.world import World, open_world

LEAST_USERS = 50
"""Users of a part, at least."""
MODELS = ("own", "global", "fused")
_RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class GainCell:
    """One federation.

    Args:
        platform: The platform whose parts take part; with `dealt` 1, all platforms of the world do.
        world: Folder of the world as it was before it was dealt.
    """

    world: str
    platform: str
    dealt: int
    epsilon: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.platform}-{self.dealt}-{self.epsilon:g}-{self.seed}"


def gain_cells(worlds: Sequence[Path], options: argparse.Namespace) -> Iterator[GainCell]:
    """What is to be run: all epsilons of one dealing after the other, so that own models are fitted once."""
    for folder in worlds:
        files = [load(path) for path in open_world(folder).platforms]
        for dealt in options.dealt:
            groups = [("+".join(file.name for file in files), 0)] if dealt == 1 else [(file.name, file.users) for file in files]
            for name, users in groups:
                if dealt > 1 and users < LEAST_USERS * dealt:
                    print(f"{name} dealt to {dealt}: fewer than {LEAST_USERS} users each, left out", file=sys.stderr)
                    continue
                for seed in options.seeds:
                    for epsilon in options.epsilon:
                        yield GainCell(world=str(folder), platform=name, dealt=dealt, epsilon=epsilon, seed=seed)


class DealtPlatforms:
    """The platforms of one federation, with their own models.

    Args:
        scratch: Folder for the dealt files.
    """

    def __init__(self, cell: GainCell, scratch: Path) -> None:
        self.key = (cell.world, cell.platform, cell.dealt, cell.seed)
        world = open_world(Path(cell.world))
        if cell.dealt > 1:
            alone = World(folder=world.folder, platforms=tuple(p for p in world.platforms if load(p).name == cell.platform))
            world = deal_world(alone, scratch, parts=cell.dealt, seed=cell.seed)
        self.world = world
        plain = _settings(cell, [])
        self.platforms: dict[str, PlatformRows] = {
            rows.name: rows for rows in (read_rows(load(path), plain) for path in world.platforms)
        }
        self._own: dict[str, OwnFit] = {}

    def own(self, name: str, *, seed: int) -> OwnFit:
        """A platform's own model."""
        if name not in self._own:
            rows = self.platforms[name]
            self._own[name] = fit_own(rows.tables, rows.split, seed=seed)
        return self._own[name]


def run_cell(cell: GainCell, dealing: DealtPlatforms, words: Sequence[str], scratch: Path) -> dict[str, RankedUsers]:
    """One federation, and every platform's users ranked by all three models."""
    noise = "distributed" if len(dealing.platforms) >= 3 else "local"
    settings = _settings(cell, [f"privacy.noise={noise}", *words])
    plan = Simulation(world=dealing.world, settings=settings, out=scratch)
    federate_virtually(plan, "gain", dealing.platforms, scratch)
    found = scratch / "model" / FILE
    shared = load_preferences(found) if found.exists() else None
    # Matrices of a part are small: a second thread is waited for longer than it helps, above all on a busy machine.
    with threadpool_limits(1 if cell.dealt > 1 else None):
        return {name: _ranked(dealing, name, shared, seed=cell.seed) for name in dealing.platforms}


def _ranked(dealing: DealtPlatforms, name: str, shared: SharedPreferences | None, *, seed: int) -> RankedUsers:
    rows, own = dealing.platforms[name], dealing.own(name, seed=seed)
    models: dict[str, UserScores] = {"own": own.model, "fused": own.model}
    if shared is not None and (factors := shared.factors_on(rows.item_hashes)).any():
        released = released_on(shared, rows.item_hashes)
        models["fused"] = fused_with(own, factors=factors, popularity=released.popularity)
        models["global"] = GlobalModel(own.validation.histories, preferences=released, text=None)
    return rank_users(models, rows.split)


def _settings(cell: GainCell, words: Sequence[str]) -> Settings:
    return settings_from(None, ["strategy=preferences", f"privacy.epsilon={cell.epsilon:g}", f"seed={cell.seed}", *words])


def save_cell(path: Path, cell: GainCell, ranked: dict[str, RankedUsers]) -> None:
    """Write what was found, whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {}
    for platform, users in ranked.items():
        arrays |= {f"{platform}/{model}": values for model, values in users.quality.items()}
        arrays |= {f"{platform}/segment/{name}": mask for name, mask in users.segments.items()}
    draft = path.with_suffix(".draft")
    with draft.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, cell=np.array(json.dumps(asdict(cell))), **arrays)
    draft.replace(path)


def platforms_of(cell: GainCell, data: Any) -> dict[str, dict[str, Floats]]:
    """Of one file: platform as it was before it was dealt -> model or segment -> per user."""
    grouped: dict[str, dict[str, list[Floats]]] = {}
    for key in data.files:
        if key == "cell":
            continue
        part, _, what = key.partition("/")
        name = part if cell.dealt == 1 else cell.platform
        grouped.setdefault(name, {}).setdefault(what, []).append(data[key])
    return {name: {what: np.concatenate(parts) for what, parts in found.items()} for name, found in grouped.items()}


def summary_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows and gains of a folder's cells."""
    rows: list[dict[str, Any]] = []
    pooled: dict[tuple[str, int, float, str], list[tuple[Floats, Floats]]] = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as data:
            cell = GainCell(**json.loads(str(data["cell"])))
            found = platforms_of(cell, data)
        for platform, values in found.items():
            for key, mask in values.items():
                if not key.startswith("segment/"):
                    continue
                segment, chosen = key.removeprefix("segment/"), mask.astype(bool)
                facts = {"platform": platform, "dealt": cell.dealt, "epsilon": cell.epsilon}
                for model in (model for model in MODELS if model in values):
                    means = dict(zip(COMPARED, values[model][chosen].mean(0).tolist(), strict=True)) if chosen.any() else {}
                    rows.append(
                        {**facts, "seed": cell.seed, "segment": segment, "model": model, **means, "users": int(chosen.sum())}
                    )
                place = COMPARED.index(NDCG)
                both = (values["own"][chosen, place], values["fused"][chosen, place])
                pooled.setdefault((platform, cell.dealt, cell.epsilon, segment), []).append(both)
    gains = [
        {"platform": platform, "dealt": dealt, "epsilon": epsilon, "segment": segment, **_gain(pairs)}
        for (platform, dealt, epsilon, segment), pairs in sorted(pooled.items())
    ]
    return {"rows": rows, "gains": gains}


def _gain(pairs: Sequence[tuple[Floats, Floats]]) -> dict[str, float | None]:
    """Ratio of the means over all users, less 1, and its bootstrap interval; None where the own model finds nothing."""
    own, fused = np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])
    if not own.any():
        return {"gain": None, "low": None, "high": None}
    random = np.random.default_rng(0)
    drawn = np.array(
        [_ratio(own[chosen], fused[chosen]) for chosen in (random.integers(0, len(own), len(own)) for _ in range(_RESAMPLES))]
    )
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"gain": _ratio(own, fused), "low": float(low), "high": float(high)}


def _ratio(own: Floats, fused: Floats) -> float:
    return float(fused.mean() / own.mean() - 1) if own.any() else float("nan")


def gain_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    """Means over seeds of every model, and the gain, for a person."""
    table = Table("platform", "dealt", "ε", "segment", *(f"{model} NDCG@10" for model in MODELS), "fused / own - 1", "95 %")
    for gain in found["gains"]:
        key = {name: gain[name] for name in ("platform", "dealt", "epsilon", "segment")}
        mine = [row for row in found["rows"] if all(row[name] == value for name, value in key.items()) and row["users"]]
        means = [_mean([row[NDCG] for row in mine if row["model"] == model]) for model in MODELS]
        share = ("-", "-") if gain["gain"] is None else (f"{gain['gain']:+.1%}", f"{gain['low']:+.1%} to {gain['high']:+.1%}")
        table.add_row(
            *(f"{value:g}" if isinstance(value, float) else str(value) for value in key.values()),
            *(f"{m:.4f}" for m in means),
            *share,
        )
    return table


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dealt", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 2.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategy", default="preferences", choices=["preferences"])
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE", help="any setting of the runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in gain_cells(options.worlds, options) if not (options.out / f"{cell.name}.npz").exists()]
    dealing: DealtPlatforms | None = None
    with tempfile.TemporaryDirectory() as temporary:
        for at, cell in enumerate(cells, start=1):
            print(f"{at} of {len(cells)}: {cell.name}", file=sys.stderr, flush=True)
            folder = Path(temporary) / cell.name
            if dealing is None or dealing.key != (cell.world, cell.platform, cell.dealt, cell.seed):
                dealing = DealtPlatforms(cell, Path(temporary) / f"world-{at}")
            save_cell(options.out / f"{cell.name}.npz", cell, run_cell(cell, dealing, options.words, folder))
            shutil.rmtree(folder, ignore_errors=True)
    found = summary_of(options.out)
    if options.json:
        json.dump(found, sys.stdout, indent=1)
    else:
        Console().print(gain_table(found))


if __name__ == "__main__":
    main()
