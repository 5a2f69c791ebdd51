"""The same federation on Flower's own Ray simulation: a process per core, each with its own copy of the backbone.

For comparison with the in-process engine, and for machines on which many cores or GPUs should serve platforms at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from server.monitoring.run_events import Event, Outcome
from server.run.checkpoint import run_of
from server.run.federation import run_federation
from shared.base.errors import FedfuseError
from shared.base.settings import Settings


def federate_on_ray(
    *,
    world: Path,
    settings: Settings,
    run: str,
    out: Path,
    platforms: int,
    events: Callable[[Event], None] | None = None,
    resume: bool = False,
) -> Outcome:
    """One federation over all platforms of a world, one virtual node each.

    Raises:
        FedfuseError: the federation failed, or Ray ended without one.
    """
    from flwr.simulation import run_simulation

    results: list[Outcome | Exception] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            again = resume and run_of(out) is not None
            results.append(
                run_federation(grid=grid, settings=settings, run=run, out=out, events=events, resume=again, nodes=platforms)
            )
        except Exception as error:
            results.append(error)  # Flower would log it and say that the run completed
            raise

    resources: dict[str, Any] = {"num_cpus": max(1, (os.cpu_count() or 1) // platforms), "num_gpus": 0.0}
    run_simulation(
        server_app=server,
        client_app=_client(str(world.resolve()), str(out.resolve())),
        num_supernodes=platforms,
        backend_config={"client_resources": resources, "init_args": {"logging_level": "error", "log_to_driver": False}},
    )
    if not results:
        raise FedfuseError("Flower's simulation ended without a result", do="run again with -v, or with --engine process")
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def _client(world: str, out: str) -> ClientApp:
    """The messenger with the run_config that Flower's `run_simulation` leaves empty."""
    client = ClientApp()

    def carry(message: Message, context: Context) -> Message:
        from client.app import app

        # A context of its own: Flower refuses one whose run_config was changed.
        config = {**context.run_config, "world": world, "out": out}
        own = Context(context.run_id, context.node_id, context.node_config, context.state, config)
        return app(message, own)

    for register in (client.query, client.train, client.evaluate):
        register()(carry)
    return client
