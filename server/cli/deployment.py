"""`fedfuse init server`, `server`, `invite`, `approve`, `revoke`, `run`: what the coordinator's people run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import server_ui
from server.cli.operators import HERE, As, At, operator, require_compared
from shared.base.errors import InputError, shell_word
from shared.base.terminal_table import terminal_console

if TYPE_CHECKING:
    from server.deployment.approved_platforms import ApprovedPlatform

server = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="The coordinator's server, and its operators.",
)
server.add_typer(operator, name="operator")
server.command("ui")(server_ui)


def init_server_command(
    folder: Annotated[Path, typer.Argument(help="A new folder for the coordinator.")],
    host: Annotated[str, typer.Option(help="Name or address under which platforms will reach this machine.")],
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "federation",
    port: Annotated[int, typer.Option(help="Port for platforms.")] = 8000,
    control_port: Annotated[int, typer.Option(help="Port for this machine alone.")] = 8001,
    listen: Annotated[str, typer.Option(help="Address to listen on for platforms.")] = "0.0.0.0",  # noqa: S104
    operator: Annotated[str, typer.Option(help="Name of the first operator, who may all: in the log of who did what.")] = "owner",
) -> None:
    """Make a coordinator: authority, TLS certificate, keys, configuration, start script, its first operator."""
    from server.deployment.provisioning import create_coordinator_folder

    made = create_coordinator_folder(
        folder, host=host, name=name, port=port, control_port=control_port, listen=listen, operator=operator
    )
    typer.echo(f"federation {made.file.name}: platforms will connect to {made.address}")
    typer.echo(f"start it:          fedfuse server start {shell_word(folder)}        (or {shell_word(folder / 'start.sh')})")
    typer.echo(f"invite platforms:  fedfuse invite shop --server {shell_word(folder)} > shop.invitation")


@server.command("start")
def start_server(folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = HERE) -> None:
    """Run Flower's SuperLink with TLS, SuperNode authentication and a database on disk, behind the gate; until it is stopped."""
    from server.deployment.folder import open_coordinator
    from server.deployment.superlink import serve_superlink
    from shared.base.logs import configure_as_told

    coordinator = open_coordinator(folder)
    configure_as_told("server", flower=True)
    serve_superlink(coordinator)


@server.command("health")
def server_health(folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = HERE) -> None:
    """Exit 0 if the server answers and its certificate is valid, 1 if not."""
    from server.deployment.flower_control import require_server
    from server.deployment.folder import open_coordinator

    coordinator = open_coordinator(folder)
    require_server(coordinator)
    coordinator.certificates.require_valid()
    typer.echo(f"healthy; the certificate holds for {coordinator.certificates.days_left():.0f} days")


@server.command("renew")
def renew(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = HERE,
    days: Annotated[int, typer.Option(help="Days that the new certificate holds.", min=1)] = 365,
    act_as: As = None,
) -> None:
    """Make a new TLS certificate from the same authority; platforms need nothing new. Restart the server afterwards."""
    from server.deployment.folder import open_coordinator
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb
    from shared.protocol.invitation import fingerprint_of_authorities

    coordinator = open_coordinator(folder)
    acting = acting_operator(coordinator, act_as, Right.CERTIFICATES)
    host = coordinator.file.host

    def record(certificate: str) -> None:
        details = {"certificate": fingerprint_of_authorities(certificate), "host": host, "days": str(days)}
        acting.record(Verb.RENEW, coordinator.file.name, details)

    coordinator.certificates.issue(host, days=days, record=record)
    typer.echo(f"a certificate for {coordinator.file.host}, for {days} days; restart the server to use it")


@server.command("restored")
def restored(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = HERE,
    act_as: As = None,
) -> None:
    """Say that this folder was restored from a backup, and that what operators did since has been done again, or is lost.

    Until then the server does not start and no run begins, where something shows that the log of operators had come further.
    """
    from server.deployment.folder import open_coordinator
    from server.operators.acting import acting_operator, log_of
    from server.operators.restored_state import require_listed, unaccounted_head
    from server.operators.rights import Right, Verb

    coordinator = open_coordinator(folder)
    acting = acting_operator(coordinator, act_as, Right.OPERATORS)
    log = log_of(coordinator)
    seen = unaccounted_head(coordinator, log)
    if seen is None:
        raise InputError("nothing shows that the log had come further", where=str(folder), do="go on")
    require_listed(coordinator, log, admitted=True)
    acting.record(Verb.RESTORED, coordinator.file.name, {"lost": str(seen.seq), "head": seen.hash})
    typer.echo(f"action {seen.seq} of {seen.time}, and what else was done until now and is not in the log, counts as lost")


def invite_command(
    platform: Annotated[str, typer.Argument(help="Name of the platform: small letters, digits, - and _.")],
    server: At = HERE,
    act_as: As = None,
) -> None:
    """Print what a platform needs to take part: addresses, certificates, public keys. There is no secret in it."""
    from server.deployment.folder import open_coordinator
    from server.deployment.provisioning import make_invitation
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb
    from shared.protocol.fingerprint_words import shown_fingerprint

    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.INVITE)
    invitation = make_invitation(coordinator, platform)
    acting.record(Verb.INVITE, platform, {"fingerprint": invitation.fingerprint})
    typer.echo(invitation.text(), nl=False)
    typer.echo(
        f"fingerprint {shown_fingerprint(invitation.fingerprint)}: read it to the platform's people when they ask", err=True
    )


def approve(
    platform: Annotated[str, typer.Argument(help="The name that it was invited under.")],
    application: Annotated[Path, typer.Argument(help="The application.toml that the platform sent.")],
    server: At = HERE,
    act_as: As = None,
    fingerprint: Annotated[str, typer.Option(help="The fingerprint that the platform's people read out, for scripts.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprint was compared already.")] = False,
    replace: Annotated[
        str, typer.Option(help="The application's fingerprint, if the platform has new keys and its people confirmed it.")
    ] = "",
) -> None:
    """Let a platform in. Compare the fingerprint with its people, by a way that you trust, before you do.

    Of a platform that comes back with another identity it says what the ledger of the former one had spent.
    """
    from server.deployment.folder import open_coordinator
    from server.deployment.former_ledgers import former_ledgers
    from server.deployment.supernode_sync import admit
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb
    from shared.protocol.fingerprint_words import is_fingerprint, shown_fingerprint
    from shared.protocol.invitation import read_application

    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.APPROVE)
    asked = read_application(application)
    if asked.platform != platform:
        raise InputError(
            f"the application is of {asked.platform!r}, not of {platform!r}", where=str(application), do="name the right one"
        )
    if asked.federation != coordinator.file.name:
        raise InputError(
            f"the application is for federation {asked.federation!r}, this is {coordinator.file.name!r}",
            where=str(application),
            do="send the platform an invitation to this one",
        )
    typer.echo(f"{platform}: fingerprint {shown_fingerprint(asked.fingerprint)}")
    for former in former_ledgers(coordinator, asked):
        typer.echo(former.text())
    if not yes and not is_fingerprint(replace, asked.fingerprint):
        require_compared(asked.fingerprint, said=fingerprint, where=str(application))

    def record(new: ApprovedPlatform, old: ApprovedPlatform | None) -> None:
        details = {"fingerprint": asked.fingerprint, "node": new.fingerprint, "replaced": old.fingerprint if old else ""}
        acting.record(Verb.APPROVE, platform, details)

    made = admit(coordinator, asked, replace_with=replace, record=record)
    state = "registered" if made.node else "it will be registered when the server starts"
    typer.echo(f"{platform} is approved; {state}")


def revoke(platform: Annotated[str, typer.Argument(help="Name of the platform.")], server: At = HERE, act_as: As = None) -> None:
    """Shut a platform out, from this moment on. What it gave to finished rounds stays in the model."""
    from server.deployment.approved_platforms import Platforms
    from server.deployment.folder import open_coordinator
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb
    from shared.protocol.invitation import fingerprint_of

    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.REVOKE)

    def record(one: ApprovedPlatform) -> None:
        acting.record(Verb.REVOKE, platform, {"fingerprint": fingerprint_of(one.identity), "node": one.fingerprint})

    Platforms(coordinator.platforms).revoke(platform, record=record)
    typer.echo(f"{platform} is revoked")


def server_status(
    server: At = HERE, as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False
) -> None:
    """Show the federation's status: platforms seen, round, budget left as each allows to be shown, last trouble."""
    from server.deployment.folder import open_coordinator
    from server.deployment.status import render_status, status_of

    found = status_of(open_coordinator(server))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        terminal_console().print(render_status(found))
