"""The ServerApp that `flwr run` starts: it reads the run's configuration and lets `run_federation` do the work."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.deployment.resumable_run import deployed
from server.monitoring.run_events import Event, Outcome
from server.run.checkpoint import run_of
from server.run.federation import run_federation
from shared.base.errors import InputError
from shared.base.logs import configure_from_environment, tell
from shared.base.settings import unflatten

# Under Flower's logger, so that `flwr run --stream` and `flwr log` show it.
logger = logging.getLogger("flwr.fedfuse")
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
    """The run that `context.run_config` describes. The same command once more goes on from the checkpoint in `out`.

    Raises:
        InputError: `world` or `out` is missing or not an absolute path, or a setting is wrong.
        FedfuseError: as `run_federation`.
    """
    values = dict(context.run_config)
    world, out = str(values.pop("world", "")), str(values.pop("out", ""))
    if not world:
        raise InputError(
            "no world is given", where="world", do="make one with `fedfuse world new DIR`, then -c 'world=\"/path/of/DIR\"'"
        )
    if not out:
        raise InputError("no folder is given for the run", where="out", do="add -c 'out=\"/path/of/a/new/folder\"'")
    for key, path in (("world", world), ("out", out)):
        if not Path(path).is_absolute():
            # Flower runs this in a folder of its own.
            raise InputError(f"{path!r} is not an absolute path", where=key, do=f"write {key} as it begins at /")
    if not Path(world).is_dir():
        raise InputError("there is no such folder", where=world, do="make a world with `fedfuse world new DIR`")
    settings = unflatten({**values, "simulation": True}, where="run_config")
    name = run_of(Path(out))
    return run_federation(
        grid=grid, settings=settings, run=name or f"flwr-{context.run_id}", out=Path(out), events=_log, resume=name is not None
    )


def _log(event: Event) -> None:
    tell(logger, str(event.kind), "[round %d] %s", event.round, event.text, round=event.round)
