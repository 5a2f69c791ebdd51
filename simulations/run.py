"""A world's federation in this process, and beside it what every platform can do by itself.

The same worker, messenger, strategies and coordinator as in a deployment; only the grid between them is in the process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.app import app as messenger
from client.config.platform_file import PlatformFile, load
from client.messenger import worker_link as link
from client.model.prepared_platform import PlatformRows, PreparedPlatform, prepare, read_rows
from client.recommender.own_evaluation import evaluate_platform
from client.recommender.pulled_model import holds_model
from client.recommender.quality.per_user_table import write_per_user
from client.worker.request_handler import Observer, Worker
from server.monitoring.run_events import Event, Kind, Outcome, Tally
from server.registry.publication import MODEL
from server.run.checkpoint import run_of
from server.run.federation import run_federation
from server.run.preference_store import SumWatcher
from server.run.starting_adapter import starting_adapter
from shared.base.atomic_files import write_whole
from shared.base.errors import FedfuseError, StorageError
from shared.base.settings import Settings
from shared.layers.malloc_tuning import give_back
from shared.model.encoder import devices
from shared.protocol.messages import Metrics
from simulations.in_process_grid import InProcessGrid
from simulations.ray_engine import federate_on_ray
from simulations.round_history import RoundHistory
from simulations.run_folder import LEDGERS, RunFolder, recorded_run, require_same_run
from simulations.worlds.world import World

Progress = Callable[[str, str, int, int], None]
"""Platform, what it does, done, of how many."""

Compared = dict[str, Any]
"""`client.recommender.own_evaluation.OwnEvaluation` as JSON; empty where nothing can be held out."""

METRICS = "metrics.json"
USERS = "users"
"""Folder of a run's tables of users, where they are wanted."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to run, and where.

    Args:
        out: The run folder; new, or one to resume.
        resume: Go on with an interrupted run in `out`.
        ray: Whether the federation runs on Flower's own simulation instead of in this process.
        per_user: Whether what every model makes of every user is written, too: `USERS`/PLATFORM.parquet in the run folder.
        earlier: Folder of a run whose adapter is trained on, and whose ledgers count.
    """

    world: World
    settings: Settings
    out: Path
    resume: bool = False
    ray: bool = False
    per_user: bool = False
    earlier: Path | None = None


def run_simulation(
    plan: Simulation, *, events: Callable[[Event], None] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run it and return the content of `metrics.json`.

    Returns:
        Facts of the run, and in `platforms` for each one: quality of `own`, `global` and `fused` (means over users, in [0, 1]),
        `fused_minus_own` with its 95 % interval; `epsilon` in nats at `delta`; `bytes_up`, `bytes_down`.

    Raises:
        InputError: a platform's sources or the run folder cannot be used.
        PrivacyError: a platform's budget does not carry the plan.
        StorageError: the run folder cannot be written.

    | given | result |
    |---|---|
    | a world of one platform | its own model alone: nothing is in common, and nothing is released |
    | an `out` that holds a run, without `resume` | `InputError` |
    | nobody likes anything | `InputError` |
    | a budget that does not carry the plan | `PrivacyError` |
    """
    began = time.monotonic()
    files = [load(path) for path in plan.world.platforms]
    if plan.resume:
        known = recorded_run(plan.out)
        require_same_run(known, world=plan.world.folder, settings=plan.settings, where=plan.out)
        plan = replace(plan, earlier=known.earlier)
        return _run(plan, files, known.run, began, events=events, progress=progress)
    if plan.earlier is not None:
        _start(plan)  # what is wrong with it is said before the folder is made
    folder = RunFolder(plan.out, world=plan.world.folder, settings=plan.settings, earlier=plan.earlier)
    try:
        return _run(plan, files, folder.run, began, events=events, progress=progress)
    except StorageError:
        raise  # with space again, it can be resumed
    except FedfuseError:
        folder.clear()
        raise


def _run(
    plan: Simulation,
    files: list[PlatformFile],
    run: str,
    began: float,
    *,
    events: Callable[[Event], None] | None,
    progress: Progress | None,
) -> dict[str, Any]:
    left_out: dict[str, str] = {}
    history = RoundHistory(plan.out, resume=plan.resume)

    def seen(event: Event) -> None:
        if event.kind in (Kind.REFUSED, Kind.DROPPED, Kind.LEFT) and event.platform:
            left_out.setdefault(event.platform, event.text.removeprefix(f"{event.platform}: "))
        history(event)
        if events is not None:
            events(event)

    # Every source is read before any text is encoded: what is wrong with the last platform is said at once.
    read = {} if plan.ray else {file.name: read_rows(file, plan.settings) for file in files}
    gpus = devices()
    dealt = {file.name: gpus[place % len(gpus)] for place, file in enumerate(files)}
    platforms = {name: _prepare(plan, rows, dealt[name], progress) for name, rows in read.items()}
    if plan.ray:
        together = federate_on_ray(
            world=plan.world.folder,
            settings=plan.settings,
            run=run,
            out=plan.out,
            platforms=len(files),
            events=seen,
            resume=plan.resume,
        )
    else:
        together = federate_virtually(plan, run, platforms, plan.out, events=seen, failed=left_out, progress=progress)
    give_back()  # what training has kept of the heap
    compared = {file.name: _compared(plan, run, file, platforms.get(file.name), progress) for file in files}
    history.take(together.tallies.values())
    metrics = {
        "private": plan.settings.private and all(file.privacy.epsilon != float("inf") for file in files),
        # Of before, federated and per_round. Own, global and fused always are: a platform's own people have them when deployed.
        "exact": plan.settings.exact_metrics,
        "rounds": together.rounds,
        "stopped": None if together.stopped is None else {**asdict(together.stopped), "why": str(together.stopped)},
        "seconds": round(time.monotonic() - began, 1),
        "strategy": plan.settings.strategy,
        "preference_items": plan.settings.preferences.items,
        "platforms": {
            name: {**_platform(tally, compared[name]), "per_round": history.of(name) if compared[name] else []}
            for name, tally in together.tallies.items()
        },
        "left_out": {name: why for name, why in left_out.items() if name not in together.tallies},
        "warnings": {file.name: list(file.privacy_warnings) for file in files if file.privacy_warnings},
    }
    write_whole(plan.out / METRICS, (json.dumps(_finite(metrics), indent=2) + "\n").encode())
    return metrics


def _prepare(plan: Simulation, rows: PlatformRows, device: torch.device, progress: Progress | None) -> PlatformRows:
    def tell(what: str, done: int, total: int) -> None:
        if progress:
            progress(rows.name, what, done, total)

    if not plan.settings.trains:
        return rows
    cache = plan.out / "state" / rows.name / "trunk"
    return prepare(rows.file, plan.settings, cache=cache, tables=rows.tables, split=rows.split, device=device, progress=tell)


def federate_virtually(
    plan: Simulation,
    run: str,
    platforms: Mapping[str, PlatformRows],
    out: Path,
    *,
    events: Callable[[Event], None] | None = None,
    failed: dict[str, str] | None = None,
    progress: Progress | None = None,
    observers: Mapping[str, Observer] | None = None,
    sums: SumWatcher | None = None,
) -> Outcome:
    """One federation of prepared platforms in this process.

    Args:
        failed: Filled with why platforms refused, in their own words, which no coordinator receives.
        observers: Platform -> called with each of its answers.
        sums: Called with every noised sum of preferences that the coordinator has.
    """
    told = observers or {}
    workers = {name: _worker(platform, out, progress, told.get(name)) for name, platform in platforms.items()}
    keys = {name: f"{run}/{name}" for name in workers}
    try:
        for name, worker in workers.items():
            link.register(keys[name], link.Direct(worker))
        nodes = {number: {"link": keys[name]} for number, name in enumerate(workers, start=2)}
        # One at a time on one device, whose threads they would only take from one another; on several GPUs side by side.
        gpus = {_device(platform) for platform in platforms.values()}
        with InProcessGrid(app=messenger, nodes=nodes, workers=len(gpus)) as grid:
            resume = plan.resume and run_of(out) is not None
            try:
                return run_federation(
                    grid=grid,
                    settings=plan.settings,
                    run=run,
                    out=out,
                    events=events,
                    resume=resume,
                    nodes=len(nodes),
                    start=_start(plan),
                    sums=sums,
                )
            except FedfuseError as error:
                # The coordinator knows one word of why a platform refused. In a simulation the person may know all.
                raise next((worker.failure for worker in workers.values() if worker.failure), error) from None
    finally:
        for name, worker in workers.items():
            if failed is not None and worker.failure:
                failed[name] = worker.failure.brief if isinstance(worker.failure, FedfuseError) else repr(worker.failure)
            link.forget(keys[name])
            worker.close()


def _start(plan: Simulation) -> dict[str, NDArray[np.float32]] | None:
    """The adapter that training begins from; None for a fresh one."""
    return None if plan.earlier is None else starting_adapter(plan.earlier / MODEL, plan.settings)


def _device(platform: PlatformRows) -> torch.device:
    return platform.towers.encoder.device if isinstance(platform, PreparedPlatform) else torch.device("cpu")


def _worker(platform: PlatformRows, out: Path, progress: Progress | None, observer: Observer | None) -> Worker:
    def tell(what: str, done: int, total: int) -> None:
        if progress:
            progress(platform.name, what, done, total)

    return Worker(
        platform.file,
        state=out / "state" / platform.name,
        ledger=out / LEDGERS / f"{platform.name}.jsonl",
        simulation=True,
        prepared=platform,
        device=_device(platform),
        progress=tell,
        observer=observer,
    )


def _compared(
    plan: Simulation, run: str, file: PlatformFile, platform: PlatformRows | None, progress: Progress | None
) -> Compared:
    """What the platform can do by itself, what is published, and both fused; exact."""

    def tell(what: str) -> None:
        if progress:
            progress(file.name, what, 0, 1)

    rows = read_rows(file, plan.settings) if platform is None else platform
    if (rows.split.held < 0).all():
        return {}
    model, state = plan.out / MODEL, plan.out / "state" / file.name
    found = evaluate_platform(
        file,
        model=model if holds_model(model) else None,
        seed=plan.settings.seed,
        cache=state / "trunk",
        state=state / "runs" / f"{run}.safetensors",
        tell=tell,
        read=rows,
    )
    if plan.per_user:
        write_per_user(plan.out / USERS / f"{file.name}.parquet", found.ranked, users=found.user_ids, held=found.held)
    if progress:
        progress(file.name, "own and fused models", 1, 1)
    return found.as_dict()


def _platform(tally: Tally, compared: Compared) -> dict[str, Any]:
    segments: dict[str, dict[str, Any]] = compared.get("segments", {})
    everyone = segments.get("all", {})
    return {
        **{model: everyone.get(model) for model in ("own", "global", "fused", "fused_minus_own")},
        "recommended_by": compared.get("recommended_by"),
        # Of more than can be ranked in reasonable time, some are drawn: `segments` says how many.
        "held_out_users": compared.get("held_out_users"),
        "segments": segments,
        # Of nobody there is no quality; the message's own is 0.
        "before": _quality(tally.before) if compared else None,
        "federated": _quality(tally.federated) if compared else None,
        "personal": _quality(tally.personal) if compared else None,
        "personal_chosen": tally.chosen,
        "users": tally.users,
        "epsilon": tally.epsilon,
        "delta": tally.joined.delta,
        "budget": tally.joined.budget,
        "noise_multiplier": tally.joined.noise_multiplier,
        "preference_noise": tally.joined.preference_noise,
        "taste_noise": tally.joined.taste_noise,
        "signal_to_noise": tally.joined.signal_to_noise,
        "bytes_up": tally.bytes_up,
        "bytes_down": tally.bytes_down,
        "rounds": tally.rounds,
        "refusals": {str(round_): str(reason) for round_, reason in tally.refusals.items()},
        "ledger": tally.ledger,
    }


def _quality(metrics: Metrics | None) -> dict[str, float] | None:
    return None if metrics is None else metrics.quality.rounded()


def _finite(value: Any) -> Any:
    """JSON has no infinity: privacy turned off is said as the string "inf"."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return "inf" if isinstance(value, float) and value == float("inf") else value
