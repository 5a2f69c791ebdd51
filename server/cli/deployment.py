"""`fedfuse init server`, `server`, `invite`, `approve`, `revoke`, `run`: what the coordinator's people run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.cli.operators import HERE, As, At, launch_details, operator, require_compared, require_logged
from shared.base.errors import ExitCode, FedfuseError, InputError

if TYPE_CHECKING:
    from server.deployment.approved_platforms import ApprovedPlatform
    from server.deployment.launch import Launch

server = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="The coordinator's server, and its operators.",
)
server.add_typer(operator, name="operator")


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
    typer.echo(f"start it:          fedfuse server start {folder}        (or {folder / 'start.sh'})")
    typer.echo(f"invite platforms:  fedfuse invite shop --server {folder} > shop.invitation")


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
    from server.deployment.flower_control import Control
    from server.deployment.folder import open_coordinator

    coordinator = open_coordinator(folder)
    with Control(coordinator) as control:
        control.seen()
    coordinator.certificates.require_valid()
    typer.echo(f"healthy; the certificate holds for {coordinator.certificates.days_left():.0f} days")


@server.command("renew")
def renew(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.")] = HERE,
    days: Annotated[int, typer.Option(help="Days that the new certificate holds.", min=1)] = 365,
) -> None:
    """Make a new TLS certificate from the same authority; platforms need nothing new. Restart the server afterwards."""
    from server.deployment.folder import open_coordinator

    coordinator = open_coordinator(folder)
    coordinator.certificates.issue(coordinator.file.host, days=days)
    typer.echo(f"a certificate for {coordinator.file.host}, for {days} days; restart the server to use it")


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

    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.INVITE)
    invitation = make_invitation(coordinator, platform)
    acting.record(Verb.INVITE, platform, {"fingerprint": invitation.fingerprint})
    typer.echo(invitation.text(), nl=False)
    typer.echo(f"fingerprint {invitation.fingerprint}: read it to the platform's people when they ask", err=True)


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
    typer.echo(f"{platform}: fingerprint {asked.fingerprint}")
    for former in former_ledgers(coordinator, asked):
        typer.echo(former.text())
    if not yes and replace != asked.fingerprint:
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


def run_command(
    server: At = HERE,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training; without a strategy, of fedavg.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="'preferences' (the default), or how adapters are trained: `fedfuse strategies`.")
    ] = None,
    noise: Annotated[str | None, typer.Option(help="'local' or 'distributed' (the secure sum).")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings, such as a `run.toml`.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting: --set training.learning_rate=0.005.")] = None,
    platforms: Annotated[int, typer.Option(help="Platforms to wait for; 0: whoever is there.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="Ask these platforms and no others: --only shop,video; may be repeated.")
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for them.")] = 300.0,
    round_patience: Annotated[
        float,
        typer.Option(
            help="Seconds in which a round of the secure sum that is given up is tried again, as its platforms return.", min=0
        ),
    ] = 600.0,
    epsilon: Annotated[
        float | None,
        typer.Option(help="By how much the run may raise what a platform has spent; default: a quarter of what each has left."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask every platform what the run would cost it, and spend nothing.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the run; default: of the federation, and the time.")] = "",
    resume: Annotated[str, typer.Option(help="Go on with the run of this name.")] = "",
    restarts: Annotated[int, typer.Option(help="Attempts after the first when something was killed or failed.", min=0)] = 5,
    act_as: As = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events and the outcome as JSON lines.")] = False,
) -> None:
    """Start a federation on the running server and watch it to its end; it goes on by itself when something is killed.

    \b
    fedfuse run --rounds 20 --platforms 3 --noise distributed
    fedfuse run --rounds 20 --epsilon 1 --dry-run        who would take part, and what it would cost
    fedfuse run --resume spring-20300102-030405          after Ctrl-C, or a reboot

    \b
    --dry-run exits with 0 where the run would begin, and with 6 where it would not.
    """
    from dataclasses import replace

    from server.deployment.folder import open_coordinator
    from server.deployment.launch import federate_deployed, record, recorded, stop
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb
    from shared.base.setting_overrides import settings_of

    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.RUN)
    require_logged(coordinator)
    if resume and dry_run:
        raise InputError("a run that is resumed has its plan", where="--resume, --dry-run", do="leave one of them out")
    publishes = acting.may(Right.PUBLISH)
    if resume:
        launch = replace(recorded(coordinator, resume), restarts=restarts, publish=publishes)
        acting.record(Verb.RESUME, launch.run)
    else:
        options = {"rounds": rounds, "strategy": strategy, "privacy.noise": noise, "privacy.epsilon": epsilon}
        words = [*(set_ or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
        asked = tuple(sorted({one for word in only or () for one in word.split(",") if one}))
        launch = _new(coordinator, settings_of(config, words), name, platforms, asked)
        launch = replace(launch, wait=wait, restarts=restarts, round_patience=round_patience, publish=publishes)
        asks = launch_details(launch)
        if dry_run:
            acting.record(Verb.DRY_RUN, launch.run, asks)
            _show_quotes(replace(launch, dry=True, restarts=0), as_json=as_json)
            return
        record(launch)
        acting.record(Verb.RUN, launch.run, asks)
    console = Console(stderr=as_json, emoji=False)
    console.print(f"run [bold]{escape(launch.run)}[/], folder {escape(str(coordinator.run(launch.run)))}", highlight=False)

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(event))
        elif event.get("kind") != "answered":
            console.print(f"[dim]round {event.get('round', 0):>3}[/]  {escape(str(event.get('text', '')))}", highlight=False)

    try:
        state = federate_deployed(launch, tell)
    except KeyboardInterrupt:
        stop(launch)
        console.print(f"stopped; go on with: fedfuse run --resume {launch.run}", highlight=False)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(state))
    else:
        ended = "INCOMPLETE" if state.get("state") == "incomplete" else "finished"
        for why in state.get("left_out", {}).values():
            console.print(f"[yellow]{escape(str(why))}[/]", highlight=False)
        console.print(f"{ended} after {state.get('round', 0)} rounds: {escape(str(state.get('why', '')))}", highlight=False)
    if state.get("state") == "incomplete":
        raise typer.Exit(ExitCode.INCOMPLETE)


def _new(coordinator: Any, settings: Any, name: str, platforms: int, only: tuple[str, ...]) -> Launch:
    from server.deployment.approved_platforms import Platforms
    from server.deployment.launch import Launch
    from strategies.composition import named

    if not settings.private:
        raise InputError("a deployed run cannot turn privacy off", where="privacy.epsilon", do="name a finite epsilon, or none")
    if settings.simulation:
        raise InputError("a deployed run is no simulation", where="simulation", do="leave it out")
    platforms = platforms or len(only)
    if platforms and platforms < settings.server.minimum_platforms:
        raise FedfuseError(
            f"{platforms} platforms are waited for, and the settings need {settings.server.minimum_platforms}",
            where="--platforms, server.minimum_platforms",
            do="wait for more",
        )
    # What the ServerApp would find after all platforms have come.
    named(settings.strategy)(settings=settings, run="new", members=())
    approved = sorted(one.name for one in Platforms(coordinator.platforms).approved())
    if platforms > len(approved):
        raise InputError(
            f"{platforms} platforms are waited for, and {len(approved)} are approved: {', '.join(approved) or 'none'}",
            where="--platforms",
            do="approve more, or wait for fewer",
        )
    strangers = sorted(set(only) - set(approved))
    if strangers:
        raise InputError(
            f"not approved: {', '.join(strangers)}", where="--only", do=f"approved are: {', '.join(approved) or 'none'}"
        )
    if only and platforms > len(only):
        raise InputError(
            f"{platforms} platforms are waited for, and --only names {len(only)}", where="--platforms, --only", do="name more"
        )
    name = name or f"{coordinator.file.name[:40]}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Launch(coordinator=coordinator, run=name, settings=settings, nodes=platforms, only=only)


def _show_quotes(launch: Launch, *, as_json: bool) -> None:
    """Ask, print, and exit as the run would begin or not."""
    from server.deployment.launch import quotes_of

    said = Console(stderr=True, emoji=False)
    found = quotes_of(launch, lambda event: said.print(f"[dim]{escape(str(event.get('text', '')))}[/]", highlight=False))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        table = Table()
        for column in ("platform", "takes part", "ε it would spend", "ε left before", "after", "noise it needs", "why not"):
            table.add_column(
                column, justify="left" if column in ("platform", "takes part", "why not") else "right", overflow="fold"
            )
        for line in found.platforms:
            numbers = (line.epsilon, line.left, line.left_after, line.noise_multiplier)
            shown = ("-" if number is None else f"{number:.3g}" for number in numbers)
            table.add_row(line.platform, "yes" if line.takes_part else "[red]no[/]", *shown, escape(line.why))
        console = Console(emoji=False)
        console.print(table)
        console.print(
            "the run would begin" if found.begins else f"[red]the run would not begin:[/] {escape(found.why)}", highlight=False
        )
        console.print("[dim]nothing was spent, and no ledger was written to[/]")
    if not found.begins:
        raise typer.Exit(ExitCode.REFUSED)


def server_status(
    server: At = HERE, as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False
) -> None:
    """Show how the federation stands: platforms seen, round, budget left as each allows to be shown, last trouble."""
    from server.deployment.folder import open_coordinator
    from server.deployment.status import render_status, status_of

    found = status_of(open_coordinator(server))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        Console(emoji=False).print(render_status(found))
