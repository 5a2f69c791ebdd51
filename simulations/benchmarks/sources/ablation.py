"""One world with everything, without one source at a time, and by each fusion operator; one file for each of these."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config.platform_file import load
from client.model.prepared_platform import PlatformRows, prepare, read_rows
from client.recommender.global_model import GlobalModel
from client.recommender.model_comparison import COMPARED, rank_users
from client.recommender.own_model import UserScores, training_histories
from client.recommender.pulled_model import fit_with_model, holds_model, open_model, use_model
from client.recommender.tell import silent
from client.recommender.text_model import TextModel, no_adapter
from client.sources.tables import Tables
from shared.base.settings import Settings
from shared.protocol.quality import NDCG
from simulations.benchmarks.sources.removal import removed
from simulations.cell_files import read_cell, write_cell
from simulations.commands import settings_from
from simulations.run import Simulation, federate_virtually
from simulations.worlds.world import open_world

EVERYTHING = "everything"
SERVING, TRAINING, OPERATOR = "serving", "training and serving", "operator"
TEXT = "text"
_RUN, _DONE = "ablation", "done"

Floats = NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AblationCell:
    """What is measured at once.

    Args:
        world: Its folder.
        source: What is not there; `EVERYTHING`, or the name of a fusion operator.
        when: `SERVING`: it was there while the federation ran; `TRAINING`: at no time; `OPERATOR`.
    """

    world: str
    seed: int
    source: str
    when: str

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join((Path(self.world).name, str(self.seed), self.source, self.when)).replace(" ", "_")


@dataclass(frozen=True, kw_only=True)
class AblationPlan:
    """What is asked for.

    Args:
        texts: Whether the encoder reads texts although nothing is trained.
        rounds: Of training; 0: preferences alone are shared.
        words: `key=value` settings of all runs.
    """

    sources: Sequence[str]
    operators: Sequence[str]
    seeds: Sequence[int]
    texts: bool
    rounds: int
    words: Sequence[str] = ()

    def settings(self, seed: int, platforms: int, *further: str) -> Settings:
        """Of one run."""
        noise = "distributed" if platforms >= 3 else "local"
        strategy = ["strategy=fedavg", f"rounds={self.rounds}"] if self.rounds else ["strategy=preferences"]
        return settings_from(None, [*strategy, f"privacy.noise={noise}", f"seed={seed}", *self.words, *further])


def run_ablation(world: Path, plan: AblationPlan, out: Path, *, say: Say = silent) -> None:
    """Run what is not there yet."""
    for seed in plan.seeds:
        cells = [AblationCell(world=str(world), seed=seed, source=name, when=when) for name, when in _asked(plan)]
        left = [cell for cell in cells if not (out / f"{cell.name}.npz").exists()]
        if not left:
            continue
        files = [load(path) for path in open_world(world).platforms]
        rows = {file.name: read_rows(file, plan.settings(seed, len(files))) for file in files}
        for cell in left:
            say(cell.name.replace("_", " "))
            write_cell(out / f"{cell.name}.npz", asdict(cell), _measured(cell, plan, rows, out / "runs", say))


def _asked(plan: AblationPlan) -> Iterator[tuple[str, str]]:
    if plan.sources:
        yield EVERYTHING, SERVING
    for source in plan.sources:
        yield source, SERVING
        if plan.rounds:
            yield source, TRAINING
    for operator in plan.operators:
        yield operator, OPERATOR


def _measured(
    cell: AblationCell, plan: AblationPlan, rows: dict[str, PlatformRows], runs: Path, say: Say
) -> dict[str, dict[str, Floats]]:
    """Platform -> model -> NDCG@10 of every user with a held-out item; none of a platform that has no such source."""
    seed, further = cell.seed, [f"model.fusion={cell.source}"] if cell.when == OPERATOR else []
    settings = plan.settings(seed, len(rows), *further)
    at_hand = dict(rows)
    if cell.source != EVERYTHING and cell.when != OPERATOR:
        less = {name: removed(one.file, one.tables, cell.source) for name, one in rows.items()}
        at_hand = {
            name: read_rows(rows[name].file, settings, tables=tables, split=rows[name].split)
            for name, tables in less.items()
            if tables is not None
        }
    if not at_hand:
        return {}
    trained = {**rows, **at_hand} if cell.when == TRAINING else rows
    whole = AblationCell(world=cell.world, seed=seed, source=EVERYTHING, when=SERVING)
    run = runs / (whole.name if cell.when == SERVING else cell.name)
    _federate(run, cell, settings, trained, say)
    found = {}
    known = read_cell(runs.parent / f"{whole.name}.npz")[1] if cell.when == SERVING and cell != whole else {}
    for name, one in at_hand.items():
        if cell.when == OPERATOR and not one.tables.vector_widths:
            continue
        if known and not plan.texts and not plan.rounds and _reads_alike(one.tables, rows[name].tables):
            found[name] = known[name]
            continue
        say(f"  {name}")
        found[name] = _ranked(one, run, settings, texts=plan.texts, operator=cell.when == OPERATOR)
    return found


def _federate(run: Path, cell: AblationCell, settings: Settings, rows: dict[str, PlatformRows], say: Say) -> None:
    """One federation, unless it is there."""
    if (run / _DONE).exists():
        return
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    if len(rows) > 1:
        say("  the federation")
        ready: dict[str, PlatformRows] = dict(rows)
        if settings.trains:
            ready = {
                name: prepare(one.file, settings, cache=_cache(run, name), tables=one.tables, split=one.split)
                for name, one in rows.items()
            }
        world = open_world(Path(cell.world))
        federate_virtually(Simulation(world=world, settings=settings, out=run), _RUN, ready, run)
    (run / _DONE).touch()


def _cache(run: Path, name: str) -> Path:
    """Features of texts depend on the texts and the backbone alone, so that all runs share them."""
    return run.parent / "trunk" / name


def _ranked(rows: PlatformRows, run: Path, settings: Settings, *, texts: bool, operator: bool) -> dict[str, Floats]:
    file, tables, split, cache = rows.file, rows.tables, rows.split, _cache(run, rows.name)
    opened = open_model(run / "model") if holds_model(run / "model") else None
    usable = None
    if opened is not None and opened.says_something(tables):
        state = run / "state" / rows.name / "runs" / f"{_RUN}.safetensors"
        usable = use_model(opened, file, tables, cache=cache, state=state if state.exists() else None, say=silent)
    histories = training_histories(tables, split)
    models: dict[str, UserScores] = {}
    if not operator:
        own, fused = fit_with_model(file, tables, split, usable, texts=texts, cache=cache, seed=settings.seed, calibrate=False)
        models |= {"own": own, "fused": fused}
        models |= {"global": usable.alone(histories)} if usable else {}
    text = usable.own_text if usable else None
    if text is None and (texts or operator):
        text = TextModel(file, no_adapter(settings.model), tables=tables, cache=cache, where=str(file.path))
    if text is not None:
        models[TEXT] = GlobalModel(histories, preferences=None, text=text)
    quality = rank_users(models, split).quality
    return {name: values[:, COMPARED.index(NDCG)] for name, values in quality.items()}


def _reads_alike(tables: Tables, whole: Tables) -> bool:
    """Whether models without a text encoder read the same of both: they read no profiles, users' vectors and private notes."""
    parts = [
        (tables.item_text, whole.item_text),
        (tables.item_elsewhere, whole.item_elsewhere),
        (tables.item_vectors, whole.item_vectors),
    ]
    alike = all(mine.keys() == other.keys() and all(mine[name] is other[name] for name in mine) for mine, other in parts)
    pairs = [(tables.item_titles, whole.item_titles), (tables.ties, whole.ties), (tables.interactions, whole.interactions)]
    return alike and all(mine is other for mine, other in pairs)


def measured_cells(folder: Path) -> Iterator[tuple[AblationCell, dict[tuple[str, str], Floats]]]:
    """Every cell of a folder, and (platform, model) -> NDCG@10 of every user."""
    for path in sorted(folder.glob("*.npz")):
        facts, parts = read_cell(path)
        flat = {(platform, model): values for platform, models in parts.items() for model, values in models.items()}
        yield AblationCell(**facts), flat
