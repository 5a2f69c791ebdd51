"""`fedfuse init client` and `fedfuse client`: what a platform's people run to take part."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shared.base.errors import ExitCode, InputError, shell_word
from shared.base.terminal_table import terminal_console

client = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="A platform's processes: start, worker, node, health, accept."
)
# Two users pass through a folder that neither may list (0711), so whether it can be read is asked where something in it is.
Folder = Annotated[Path, typer.Argument(help="The platform's folder.", readable=False)]
Replace = Annotated[
    list[str] | None,
    typer.Option(help="NAME=FINGERPRINT: accept this in the place of what is known under the name; may be repeated."),
]
Socket = Annotated[
    Path | None, typer.Option("--socket", help="The worker's socket; default: socket/worker.sock in the folder.", readable=False)
]


def init_client_command(
    folder: Annotated[Path, typer.Argument(help="A new folder for the platform.")],
    invitation: Annotated[Path, typer.Option(help="The file that the coordinator sent.")],
    users: Annotated[int, typer.Option(help="Declared number of users: public, and need not be exact.", min=1)],
    data: Annotated[list[Path] | None, typer.Option(help="A file of a table, or a folder of them; may be repeated.")] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="A database: 'postgresql+psycopg://reader:${PASSWORD}@host/shop'; may be repeated.")
    ] = None,
    table: Annotated[list[str] | None, typer.Option(help="Of the database; default: all. May be repeated.")] = None,
    epsilon: Annotated[float, typer.Option(help="Privacy budget of every user, over all runs together.", min=0.0)] = 8.0,
    delta: Annotated[float, typer.Option(help="Its delta.")] = 1e-5,
) -> None:
    """Make a platform: keys, what the invitation says, and a commented platform.toml drafted from the tables' columns."""
    from client.setup.guess_table import guessed_tables
    from client.setup.provisioning import create_platform_folder
    from shared.protocol.fingerprint_words import shown_fingerprint
    from shared.protocol.invitation import read_invitation

    invited = read_invitation(invitation)
    made = create_platform_folder(
        folder, invited, data=data or [], urls=url or [], tables=table or [], users=users, epsilon=epsilon, delta=delta
    )
    title = f"platform {invited.platform} of federation {invited.federation}"
    terminal_console().print(guessed_tables(made.guesses, title=title))
    typer.echo(f"invitation fingerprint {shown_fingerprint(invited.fingerprint)}: compare it with the coordinator's people")
    typer.echo(f"1. correct {folder / 'platform.toml'}, then: fedfuse check {shell_word(folder)}")
    typer.echo(f"2. send {folder / 'application.toml'} to the coordinator (no secret is in it)")
    typer.echo(
        f"   fingerprint {shown_fingerprint(made.application.fingerprint)}: read it to the coordinator's people when they ask"
    )
    typer.echo(f"3. fedfuse client start {shell_word(folder)}")


@client.command("accept")
def accept_command(
    folder: Folder,
    invitation: Annotated[Path, typer.Argument(help="A newer invitation: another address, authority, members.")],
    replace: Replace = None,
) -> None:
    """Take a newer invitation of the same federation; keys, budget and ledger stay. What it changes is asked for."""
    from client.config.confirmed_changes import ask, parse_replacements
    from client.config.deployment_folder import open_deployment
    from client.setup.provisioning import accept_invitation, invitation_changes
    from shared.protocol.fingerprint_words import shown_fingerprint
    from shared.protocol.invitation import read_invitation

    deployment, newer = open_deployment(folder), read_invitation(invitation)
    named, changes = parse_replacements(replace or []), invitation_changes(deployment, newer)
    typer.echo(f"invitation fingerprint {shown_fingerprint(newer.fingerprint)}: compare it with the coordinator's people")
    accept_invitation(deployment, newer, replace=ask(changes, named, confirm=_confirm) if _at_a_terminal() else named)
    typer.echo("taken; identities of other platforms are taken with: fedfuse client trust")


@client.command("start")
def start_command(
    folder: Folder,
    socket: Socket = None,
    worker_user: Annotated[str | None, typer.Option(help="User of the worker; needs the rights of an administrator.")] = None,
    messenger_user: Annotated[str | None, typer.Option(help="User of the messenger.")] = None,
    group: Annotated[str | None, typer.Option(help="Group that both users are in, for the socket.")] = None,
    no_wall: Annotated[
        bool, typer.Option("--no-wall", help="Start even if nothing keeps the bundle's code from your files.")
    ] = False,
    metrics_port: Annotated[int, typer.Option(help="The worker's Prometheus metrics on 127.0.0.1; 0: none.")] = 0,
) -> None:
    """Join the federation: run worker and messenger, restart them when they die, until Ctrl-C or SIGTERM."""
    from client.config.deployment_folder import open_deployment
    from client.config.platform_file import load
    from client.supernode.sandbox import wall
    from client.supernode.supervisor import Supervisor, require_wall
    from client.worker.process import group_id, user_id

    deployment = open_deployment(folder)
    for warning in load(deployment.file).privacy_warnings:
        typer.echo(f"warning: {warning}", err=True)
    users = (user_id(worker_user), user_id(messenger_user))
    found = wall()
    typer.echo(require_wall(wall=found, users=users, allowed=no_wall))
    supervisor = Supervisor(
        deployment=deployment,
        at=(socket or deployment.socket).absolute(),
        caged=bool(found),
        tell=typer.echo,
        users=users,
        group=group_id(group),
        metrics_port=metrics_port,
    )
    raise typer.Exit(supervisor.run())


@client.command("worker")
def worker_command(
    folder: Folder,
    socket: Socket = None,
    messenger: Annotated[
        list[str] | None, typer.Option(help="User that may connect, by name or number; default: this one.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Group that may open the socket (0660), if the messenger is another user.")
    ] = None,
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics on 127.0.0.1; 0: none.")] = 0,
) -> None:
    """The worker alone, for systemd and containers: holds rows, model, keys and ledger, and answers at its socket."""
    from client.config.deployment_folder import open_deployment
    from client.worker.process import serve_worker
    from shared.base.logs import configure_as_told

    deployment = open_deployment(folder)
    configure_as_told("worker")
    serve_worker(deployment, at=socket, users=messenger or [], group=group, metrics_port=metrics_port)


@client.command("node")
def node_command(
    folder: Annotated[
        Path, typer.Argument(help="The platform's folder, or a copy of its node/ and invitation.toml.", readable=False)
    ],
    socket: Socket = None,
    free: Annotated[
        bool, typer.Option("--free", help="Without Landlock: this process has a user or a container of its own.")
    ] = False,
) -> None:
    """The messenger alone, for systemd and containers: Flower's SuperNode, which carries requests to the worker."""
    from client.config.deployment_folder import Deployment
    from client.supernode.authority_update import greet_or_renew
    from client.supernode.process import Messenger, run_supernode
    from shared.protocol.keys import load_node_key

    deployment = Deployment(folder.absolute())
    invitation = deployment.invited()
    # Said here, since Flower does not say it: unknown key, wrong authority, expired certificate, revoked, clock, version.
    key = load_node_key(deployment.node_key)
    found = greet_or_renew(invitation.address, authority=deployment.authority, key=key, coordinator=invitation.coordinator)
    messenger = Messenger.of(deployment, invitation, socket=socket)
    run_supernode(messenger.paced(found.pace), caged=not free)


@client.command("health")
def client_health(folder: Folder, socket: Socket = None) -> None:
    """Exit 0 if the worker answers at its socket, 1 if not."""
    from client.config.deployment_folder import open_deployment
    from client.supernode.supervisor import greets

    if not greets(socket or open_deployment(folder).socket):
        typer.echo("the worker does not answer", err=True)
        raise typer.Exit(ExitCode.FAILED)
    typer.echo("the worker answers")


@client.command("status")
def client_status(
    folder: Folder,
    socket: Socket = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show this platform's status: its worker, its budget by the ledger, its runs. Nothing of it is sent."""
    import json

    from client.config.deployment_folder import open_deployment
    from client.supernode.status import state_of

    state = state_of(open_deployment(folder), at=socket)
    if as_json:
        typer.echo(json.dumps(state.to_json(), indent=2))
        return
    typer.echo(f"platform {state.name} of federation {state.federation} at {state.address}")
    typer.echo(f"the worker {'answers' if state.worker else 'does not answer'}; on this machine the messenger is {state.wall}")
    typer.echo(f"epsilon {state.spent:.4g} of {state.budget:g} is spent, at delta {state.delta:g}; ledger {state.ledger}")
    for run, rounds in state.runs.items():
        typer.echo(f"  run {run}: charged up to round {rounds}")


@client.command("identity")
def identity_command(folder: Folder) -> None:
    """Print this platform's identity in the secure sum and its fingerprint, to be compared by the other platforms' people.

    And the number of the platforms that it trusts and itself, which is the same on each that trusts the same ones.
    """
    from client.config.deployment_folder import open_deployment
    from client.config.trusted_peers import read_peers
    from shared.protocol.fingerprint_words import federation_number, shown_fingerprint
    from shared.protocol.invitation import read_application

    deployment = open_deployment(folder)
    application, peers = read_application(deployment.application), read_peers(deployment.folder / "peers.toml")
    typer.echo(f"{application.platform} {application.identity}")
    typer.echo(f"fingerprint {shown_fingerprint(application.fingerprint)}")
    together = {**peers, application.platform: application.identity}
    typer.echo(f"number {federation_number(application.federation, together)} of {', '.join(sorted(together))}")


@client.command("trust")
def trust_command(
    folder: Folder,
    files: Annotated[list[Path], typer.Argument(help="application.toml of other platforms, or an invitation that names them.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="The fingerprints of new platforms were compared already; changes nothing known.")
    ] = False,
    number: Annotated[
        str,
        typer.Option(help="The federation's number, as the others read it out: confirms all new platforms."),
    ] = "",
    replace: Replace = None,
) -> None:
    """Write down other platforms' identities, for the secure sum, after their fingerprints were compared with their people.

    Or one number for all: it is the same on each platform that trusts the same ones. A newer invitation names all who are
    approved.

    An identity that would replace a known one is asked for by itself, and is refused without a terminal or --replace.
    """
    from client.config.confirmed_changes import ask, parse_replacements
    from client.config.deployment_folder import open_deployment
    from client.config.trusted_peers import identities_of, identity_changes, read_peers, require_own, trust_identities
    from shared.protocol.fingerprint_words import federation_number, shown_fingerprint
    from shared.protocol.invitation import fingerprint_of, read_application

    deployment = open_deployment(folder)
    peers, own = deployment.folder / "peers.toml", read_application(deployment.application)
    found = identities_of(files, federation=own.federation)
    require_own(found, own)
    found.pop(own.platform, None)
    known, named, changes = read_peers(peers), parse_replacements(replace or []), identity_changes(peers, found)
    for name, key in sorted(found.items()):
        state = "known" if known.get(name) == key else "CHANGED" if name in known else "new"
        typer.echo(f"{name}: fingerprint {shown_fingerprint(fingerprint_of(key))} ({state})")
    fresh = [name for name in found if name not in known]
    together = {**known, **found, own.platform: own.identity}
    shown = federation_number(own.federation, together)
    typer.echo(f"number {shown} of {', '.join(sorted(together))}")
    if number and number.strip() != shown:
        raise InputError(
            f"the number of these platforms is {shown}, and --number says {number}",
            where="client trust",
            do="nothing was written; see whether the others trust the same platforms, else compare fingerprints one by one",
        )
    yes = yes or bool(number)
    if fresh and not yes and not _at_a_terminal():
        raise InputError(
            f"nobody is at a terminal to say whether the fingerprint of {', '.join(sorted(fresh))} was compared",
            where="client trust",
            do="nothing was written; compare each with its platform's people, then: --yes; or one number with all of them, then: "
            f"--number {shown}",
        )
    if not found or (
        fresh and not (yes or typer.confirm("have you compared each new one, or the number, with the platforms' people?"))
    ):
        typer.echo("nothing was written")
        raise typer.Exit(ExitCode.FAILED)
    written = trust_identities(peers, found, replace=ask(changes, named, confirm=_confirm) if _at_a_terminal() else named)
    typer.echo(f"written: {', '.join(written)}; restart the worker to use it" if written else "all were known")


@client.command("distrust")
def distrust_command(
    folder: Folder, names: Annotated[list[str], typer.Argument(help="Platforms that `fedfuse client trust` wrote down.")]
) -> None:
    """Forget other platforms' identities: no secure sum is with them any more. One that has left need not stay on the list."""
    from client.config.deployment_folder import open_deployment
    from client.config.trusted_peers import forget_identities

    forget_identities(open_deployment(folder).folder / "peers.toml", names)
    typer.echo(f"forgotten: {', '.join(sorted(set(names)))}; restart the worker to use it")


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _confirm(question: str) -> bool:
    return typer.confirm(question, default=False)
