"""`fedfuse serve`: a platform's recommendations for its own programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.cli.model_options import ModelOption, TextsOption, TrustOption, trusted_keys
from client.cli.progress_lines import Told, trunk_and_state
from client.serving.event_log import MOST_EVENTS
from shared.base.errors import InputError

_HOST, _PORT = "127.0.0.1", 8571


def serve_command(
    platform: Annotated[Path, typer.Argument(help="The platform file, or its folder.", readable=False)],
    model: ModelOption = None,
    trust: TrustOption = None,
    texts: TextsOption = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but this machine needs --network and --token.")
    ] = _HOST,
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = _PORT,
    socket: Annotated[
        Path | None, typer.Option(help="A Unix socket in the place of a port; its rights (0600) are asked, and no token.")
    ] = None,
    token: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that is asked for (mode 0600); default: one in the state folder, made if it is not there."
        ),
    ] = None,
    no_token: Annotated[
        bool,
        typer.Option("--no-token", help="Ask for no token: whoever has an account on this machine can ask for anybody's list."),
    ] = False,
    network: Annotated[bool, typer.Option("--network", help="Let other machines reach it; behind a proxy with TLS.")] = False,
    events: Annotated[int, typer.Option(help="Events that are kept at most.", min=2, max=5_000_000)] = MOST_EVENTS,
    processes: Annotated[
        int,
        typer.Option(
            help="Processes that answer requests, each with its own memory; at most one per core.",
            min=1,
            max=64,
        ),
    ] = 1,
) -> None:
    """Answer /recommend, /similar, /explain and /events on this machine, and show a page on which to try them.

    Events count from the next answer on, without training, and are kept in the platform's state folder for the next start.
    Nothing leaves the platform. docs/serving.md has the routes; a running server describes them at /openapi.json.

    \b
    fedfuse serve shop.toml --model model
    fedfuse serve shop.toml --socket /run/shop/recommend.sock
    """
    from contextlib import ExitStack
    from functools import partial

    from client.config.deployment_folder import platform_file_in
    from client.config.platform_file import load
    from client.messenger.unix_socket import listen
    from client.recommender.serving.fitted_platform import ModelInputs
    from client.recommender.tell import Reports
    from client.serving.api import create_api
    from client.serving.processes import further_processes
    from client.serving.served_answers import served_answers
    from shared.pages import local_server

    if no_token and (token is not None or network or socket is not None):
        raise InputError(
            "--no-token is for this machine's loopback address alone", do="leave out --token, --network and --socket"
        )
    if socket is not None and (token is not None or network):
        raise InputError("a Unix socket has rights in the place of a token", do="leave out --token and --network")
    if socket is None:
        local_server.require_private(host, network=network, token=token)
    file = load(platform_file_in(platform))
    secret = None
    if socket is None and not no_token:
        token = token or file.state / "serving.token"
        secret = local_server.token_in(token, make=token == file.state / "serving.token")
    cache, state = trunk_and_state(file, model)
    inputs = ModelInputs(model=model, state=state, trusted=trusted_keys(model, trust), texts=texts, cache=cache)
    with ExitStack() as closing:
        with Told(file.privacy_warnings) as told:
            reports = Reports(say=told.say, tell=told.tell, progress=told.progress)
            answers = served_answers(file, inputs, most=events, reports=reports)
            closing.callback(answers.close)
            told.say(answers.people.in_words)
            if no_token:
                told.say("warning: no token is asked for: every account of this machine can ask for any user's list")
            listener = closing.enter_context(listen(socket) if socket is not None else local_server.tcp_socket(host, port))
            if socket is not None:
                closing.callback(socket.unlink, missing_ok=True)
            hosts = local_server.names_of(listener, host)
            make = partial(served_answers, file, inputs, most=events, joined=True)
            closing.enter_context(
                further_processes(processes - 1, make, listener, token=secret, hosts=hosts, like=answers, tell=told.tell)
            )
        where = (
            str(socket) if socket is not None else f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        )
        typer.echo(f"serving {file.name} at {where}" + (f"; the token is in {token}" if secret else ""))
        local_server.serve(create_api(answers), listener, token=secret, hosts=hosts)
    typer.echo("stopped")
