"""`fedfuse server ui`: the coordinator's page, for a browser of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.operators import HERE

_HOST, _PORT = "127.0.0.1", 8570


def server_ui(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = HERE,
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = _PORT,
) -> None:
    """Show the federation in a browser of this machine: platforms, runs as they go on, budgets, models, who did what.

    It listens on 127.0.0.1 alone, asks for a token (state/ui.token, 0600), and changes nothing: what is done is done by commands.
    Nothing is asked of another server. From your own desk: ssh -L 8570:127.0.0.1:8570 COORDINATOR.
    """
    from server.console.api import console_api
    from server.console.overview import Overview
    from server.deployment.folder import open_coordinator
    from shared.pages import local_server

    coordinator = open_coordinator(folder)
    path = coordinator.state / "ui.token"
    coordinator.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = local_server.token_in(path, make=True)
    listener = local_server.tcp_socket(_HOST, port)
    typer.echo(f"federation {coordinator.file.name} at http://{_HOST}:{listener.getsockname()[1]}; the token is in {path}")
    api = console_api(Overview(coordinator))
    local_server.serve(api, listener, token=token, hosts=local_server.names_of(listener, _HOST))
    typer.echo("stopped")
