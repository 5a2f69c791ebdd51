"""A world's federation in this process, and beside it what every platform can do by itself.

The same worker, messenger, strategies and coordinator as in a deployment; only the grid between them is in the process.
"""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch

from client.app import app as messenger
from client.config.platform_file import PlatformFile, load
from client.messenger import worker_link as link
from client.model.prepared_platform import PlatformRows, PreparedPlatform, prepare, read_rows
from client.recommender.own_evaluation import evaluate_platform
from client.recommender.pulled_model import holds_model
from client.worker.request_handler import Worker
from server.monitoring.run_events import Event, Outcome, Tally
from server.registry.publication import MODEL
from server.run.checkpoint import run_of
from server.run.federation import run_federation
from shared.base.atomic_files import write_whole
from shared.base.errors import FedfuseError, InputError, StorageError
from shared.base.settings import Settings
from shared.model.encoder import devices
from shared.protocol.messages import Metrics
from shared.protocol.quality import Quality
from simulations.in_process_grid import InProcessGrid
from simulations.ray_engine import federate_on_ray
from simulations.worlds.world import World

Progress = Callable[[str, str, int, int], None]
"""Platform, what it does, done, of how many."""

Compared = dict[str, Any]
"""`client.recommender.own_evaluation.OwnEvaluation` as JSON; empty where nothing can be held out."""

METRICS = "metrics.json"
RECORD = "run.toml"


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What to run, and where.

    Args:
        out: The run folder; new, or one to resume.
        resume: Go on with an interrupted run in `out`.
        ray: Whether the federation runs on Flower's own simulation instead of in this process.
    """

    world: World
    settings: Settings
    out: Path
    resume: bool = False
    ray: bool = False


def run_simulation(
    plan: Simulation, *, events: Callable[[Event], None] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run it and return the content of `metrics.json`.

    Raises:
        InputError: a platform's sources or the run folder cannot be used.
        PrivacyError: a platform's budget does not carry the plan.
        StorageError: the run folder cannot be written.
    """
    began = time.monotonic()
    files = [load(path) for path in plan.world.platforms]
    run = _open_folder(plan)
    gpus = devices()
    dealt = {file.name: gpus[place % len(gpus)] for place, file in enumerate(files)}
    platforms = {file.name: _prepare(plan, file, dealt[file.name], progress) for file in files} if not plan.ray else {}
    if plan.ray:
        together = federate_on_ray(
            world=plan.world.folder,
            settings=plan.settings,
            run=run,
            out=plan.out,
            platforms=len(files),
            events=events,
            resume=plan.resume,
        )
    else:
        together = federate_virtually(plan, run, platforms, plan.out, events=events, progress=progress)
    compared = {file.name: _compared(plan, run, file, platforms.get(file.name), progress) for file in files}
    metrics = {
        "private": plan.settings.private and all(file.privacy.epsilon != float("inf") for file in files),
        "exact": True,  # a simulation's metrics; a deployed platform's are noised and charged
        "rounds": together.rounds,
        "seconds": round(time.monotonic() - began, 1),
        "strategy": plan.settings.strategy,
        "platforms": {name: _platform(tally, compared[name]) for name, tally in together.tallies.items()},
    }
    write_whole(plan.out / METRICS, (json.dumps(_finite(metrics), indent=2) + "\n").encode())
    return metrics


def _open_folder(plan: Simulation) -> str:
    """Make the run folder, or check that it holds the very run that is to be resumed; returns the run's name."""
    out = plan.out
    record = {"world": str(plan.world.folder.resolve()), "settings": _tomlable(plan.settings)}
    if plan.resume:
        known = _recorded(out / RECORD)
        if {key: value for key, value in known.items() if key != "run"} != tomllib.loads(tomli_w.dumps(record)):
            raise InputError(
                "the run began with other settings or another world", where=str(out / RECORD), do="resume with the same options"
            )
        return str(known["run"])
    # A generated world may lie in the folder already; anything else is somebody's run.
    if out.exists() and {path.name for path in out.iterdir()} - {plan.world.folder.name}:
        raise InputError("the run folder is not empty", where=str(out), do="name a new folder with --out, or go on with --resume")
    run = f"simulation-{int(time.time())}"
    # The name is written before anything is charged under it, so that a resumed run finds its own charges.
    write_whole(out / RECORD, tomli_w.dumps({"run": run, **record}).encode())
    free = shutil.disk_usage(out).free
    if free < 1 << 26:
        raise StorageError(f"{free >> 20} MiB are free", where=str(out), do="free some space, or name another folder with --out")
    return run


def _recorded(path: Path) -> dict[str, Any]:
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no run to resume", where=str(path), do="name the folder of an interrupted run") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"the run's record cannot be read ({error})", where=str(path), do="start a new run") from None
    if not isinstance(known.get("run"), str):
        raise StorageError("the run's record has no name", where=str(path), do="start a new run")
    return known


def _prepare(plan: Simulation, file: PlatformFile, device: torch.device, progress: Progress | None) -> PlatformRows:
    def tell(what: str, done: int, total: int) -> None:
        if progress:
            progress(file.name, what, done, total)

    if not plan.settings.trains:
        return read_rows(file, plan.settings)
    return prepare(file, plan.settings, cache=plan.out / "state" / file.name / "trunk", device=device, progress=tell)


def federate_virtually(
    plan: Simulation,
    run: str,
    platforms: Mapping[str, PlatformRows],
    out: Path,
    *,
    events: Callable[[Event], None] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """One federation of prepared platforms in this process."""
    workers = {name: _worker(platform, out, progress) for name, platform in platforms.items()}
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
                    grid=grid, settings=plan.settings, run=run, out=out, events=events, resume=resume, nodes=len(nodes)
                )
            except FedfuseError as error:
                # The coordinator knows one word of why a platform refused. In a simulation the person may know all.
                raise next((worker.failure for worker in workers.values() if worker.failure), error) from None
    finally:
        for name, worker in workers.items():
            link.forget(keys[name])
            worker.close()


def _device(platform: PlatformRows) -> torch.device:
    return platform.towers.encoder.device if isinstance(platform, PreparedPlatform) else torch.device("cpu")


def _worker(platform: PlatformRows, out: Path, progress: Progress | None) -> Worker:
    def tell(what: str, done: int, total: int) -> None:
        if progress:
            progress(platform.name, what, done, total)

    return Worker(
        platform.file,
        state=out / "state" / platform.name,
        ledger=out / "ledger" / f"{platform.name}.jsonl",
        simulation=True,
        prepared=platform,
        device=_device(platform),
        progress=tell,
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
    if progress:
        progress(file.name, "own and fused models", 1, 1)
    return found.as_dict()


def _platform(tally: Tally, compared: Compared) -> dict[str, Any]:
    segments: dict[str, dict[str, Any]] = compared.get("segments", {})
    everyone = segments.get("all", {})
    return {
        **{model: everyone.get(model) for model in ("own", "global", "fused", "fused_minus_own")},
        "recommended_by": compared.get("recommended_by"),
        "segments": segments,
        "before": _quality(tally.before),
        "federated": _quality(tally.federated),
        "personal": _quality(tally.personal),
        "personal_chosen": tally.chosen,
        "users": tally.users,
        "epsilon": tally.epsilon,
        "delta": tally.joined.delta,
        "budget": tally.joined.budget,
        "noise_multiplier": tally.joined.noise_multiplier,
        "preference_noise": tally.joined.preference_noise,
        "signal_to_noise": tally.joined.signal_to_noise,
        "bytes_up": tally.bytes_up,
        "bytes_down": tally.bytes_down,
        "rounds": tally.rounds,
        "refusals": {str(round_): str(reason) for round_, reason in tally.refusals.items()},
        "ledger": tally.ledger,
    }


def _quality(metrics: Metrics | None) -> dict[str, float] | None:
    return None if metrics is None else _rounded(metrics.quality)


def _rounded(quality: Quality) -> dict[str, float]:
    return {name: round(mean, 6) for name, mean in quality.items()}


def _tomlable(settings: Settings) -> dict[str, Any]:
    """Settings without nulls, which TOML lacks: a budget that is each platform's own is left out."""
    values = settings.model_dump(mode="python")
    values["privacy"] = {key: value for key, value in values["privacy"].items() if value is not None}
    return values


def _finite(value: Any) -> Any:
    """JSON has no infinity: privacy turned off is said as the string "inf"."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return "inf" if isinstance(value, float) and value == float("inf") else value
