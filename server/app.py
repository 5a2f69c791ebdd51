"""The ServerApp that `flwr run` starts: it reads the run's configuration and lets `run_federation` do the work."""

from __future__ import annotations

import importlib
import logging
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.deployment.resumable_run import deployed
from server.monitoring.run_events import Event, Outcome
from server.run.checkpoint import run_of
from server.run.federation import run_federation
from shared.base.engine_folders import engine_folders
from shared.base.errors import InputError
from shared.base.logs import configure_from_environment, tell
from shared.base.settings import unflatten

# Under Flower's logger, so that `flwr run --stream` and `flwr log` show it.
logger = logging.getLogger("flwr.fedfuse")
NODES_WITHIN = 60.0
"""Seconds in which Flower's engine makes its virtual nodes."""
app = ServerApp()
configure_from_environment("server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """A deployed run, or a world's platforms as Flower's virtual nodes; what goes wrong is raised, or Flower says completed."""
    if context.run_config.get("run"):
        deployed(grid, context.run_config)
    else:
        run_in_engine(grid, context)


def run_in_engine(grid: Grid, context: Context) -> Outcome:
    """The run that `context.run_config` describes. The same `out` once more goes on from its checkpoint.

    Where no `world` is named, one is generated: shops of one trade, as many as there are nodes.

    Raises:
        InputError: `world` or `out` is not an absolute path, or a setting is wrong.
        FedfuseError: as `run_federation`.
    """
    values = dict(context.run_config)
    world, out = engine_folders(values, context.run_id)
    named = [(key, str(path)) for key in ("world", "out") if (path := values.pop(key, ""))]
    for key, path in named:
        if not Path(path).is_absolute():
            # Flower runs this in a folder of its own.
            raise InputError(f"{path!r} is not an absolute path", where=key, do=f"write {key} as it begins at /")
    settings = unflatten({**values, "simulation": True}, where="run_config")
    if "world" not in dict(named):
        if not world.exists():
            _generate(world, platforms=_nodes(grid))
    elif not world.is_dir():
        raise InputError("there is no such folder", where=str(world), do="make a world with `fedfuse world new DIR`")
    name = run_of(out)
    outcome = run_federation(
        grid=grid, settings=settings, run=name or f"flwr-{context.run_id}", out=out, events=_log, resume=name is not None
    )
    logger.info(
        "the run's folder is %s; next: fedfuse audit %s, or fedfuse evaluate %s/PLATFORM.toml --model %s",
        out,
        out,
        world,
        outcome.model,
    )
    return outcome


def _generate(world: Path, *, platforms: int) -> None:
    # Imported by name: what is deployed must not import simulations, and in a deployment nothing comes here.
    large = importlib.import_module("simulations.worlds.large")
    sizes = large.LargeSizes(users=400, items=300, events=3_200, platforms=platforms, in_common=0.8)
    large.write_large_world(world, sizes, seed=0, kind="csv")
    logger.info("no world is named: %d small shops of one trade are generated in %s", platforms, world)


def _nodes(grid: Grid) -> int:
    """How many nodes there are, as soon as there are any."""
    end = time.monotonic() + NODES_WITHIN
    while not (nodes := list(grid.get_node_ids())):
        if time.monotonic() > end:
            raise InputError("no node has come", where="the federation", do='add --federation-config "num-supernodes=2"')
        time.sleep(0.2)
    return len(nodes)


def _log(event: Event) -> None:
    tell(logger, str(event.kind), "[round %d] %s", event.round, event.text, round=event.round)
