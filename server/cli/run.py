"""`fedfuse run`, `runs`, `abort`: what the coordinator's people run, and what became of it."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.cli.operators import HERE, As, At, launch_details
from shared.base.errors import ExitCode, FedfuseError, InputError, shell_word
from shared.base.terminal_table import terminal_console, terminal_table

if TYPE_CHECKING:
    from server.deployment.folder import CoordinatorFolder
    from server.deployment.launch import Launch
    from server.scheduling.run_list import RunSummary
    from server.scheduling.turns import Turn
    from shared.base.settings import Settings


def run_command(
    server: At = HERE,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training; without a strategy, of fedavg.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="'preferences' (the default), or how adapters are trained: `fedfuse strategies`.")
    ] = None,
    noise: Annotated[
        Literal["local", "distributed"] | None, typer.Option(help="'distributed': it is shared, under the secure sum.")
    ] = None,
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
    earlier: Annotated[
        str, typer.Option("--from", metavar="NAME", help="Train on from the adapter of this finished run, on the rows of today.")
    ] = "",
    restarts: Annotated[int, typer.Option(help="Attempts after the first when something was killed or failed.", min=0)] = 5,
    act_as: As = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Wait in line where another run is at work, instead of being refused.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Give the terminal back: a process of its own watches the run; see `fedfuse runs`."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print events and the outcome as JSON lines.")] = False,
) -> None:
    """Start a federation on the running server and watch it to its end; it goes on by itself when something is killed.

    \b
    fedfuse run --rounds 20 --platforms 3 --noise distributed
    fedfuse run --rounds 20 --epsilon 1 --dry-run        who would take part, and what it would cost
    fedfuse run --rounds 20 --queue --detach             when the run that is at work has ended; follow it: fedfuse runs --follow
    fedfuse run --rounds 5 --from spring-20300102-030405 train on what that run has learnt
    fedfuse run --resume spring-20300102-030405          after Ctrl-C, or a reboot

    \b
    One run is at work at a time; without --queue another is refused (exit code 6).
    --dry-run exits with 0 where the run would begin, and with 6 where it would not.
    """
    from server.deployment.flower_control import require_server
    from server.deployment.folder import open_coordinator
    from server.deployment.launch import record, recorded, require_open
    from server.operators.acting import acting_operator, log_of
    from server.operators.restored_state import require_current
    from server.operators.rights import Right, Verb
    from server.scheduling.run_notes import clear_notes
    from server.scheduling.turns import Turn
    from shared.base.setting_overrides import settings_of

    if earlier and resume:
        raise InputError("a run that is resumed knows where it began", where="--from", do="leave --from out")
    if dry_run and (resume or detach or queue):
        raise InputError("a dry run is answered at once, and waits for nothing", where="--dry-run", do="leave the others out")
    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.RUN)
    require_current(coordinator, log_of(coordinator))
    publishes = acting.may(Right.PUBLISH)
    if resume:
        launch = replace(recorded(coordinator, resume), restarts=restarts, publish=publishes)
        require_open(launch)
    else:
        options = {"rounds": rounds, "strategy": strategy, "privacy.noise": noise, "privacy.epsilon": epsilon}
        words = [*(set_ or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
        asked = tuple(sorted({one for word in only or () for one in word.split(",") if one}))
        settings = settings_of(config, words)
        if earlier:
            _require_start(coordinator, earlier, settings)
        launch = replace(_new(coordinator, settings, name, platforms, asked), start=earlier)
        launch = replace(launch, wait=wait, restarts=restarts, round_patience=round_patience, publish=publishes)
    require_server(coordinator)  # one that goes away later is waited for
    if dry_run:
        acting.record(Verb.DRY_RUN, launch.run, launch_details(launch))
        _show_quotes(replace(launch, dry=True, restarts=0), as_json=as_json)
        return
    with Turn(coordinator, launch.run, waits=queue) as turn:
        if not resume:
            record(launch)
        acting.record(Verb.RESUME if resume else Verb.RUN, launch.run, launch_details(launch))
        clear_notes(launch.folder)
        if not detach:
            _watch(launch, turn, as_json=as_json)
            return
    _detach(launch, as_json=as_json)


def _require_start(coordinator: CoordinatorFolder, earlier: str, settings: Settings) -> None:
    """What is wrong with `--from` is said before a run is written down."""
    from server.deployment.launch import recorded
    from server.registry.publication import MODEL
    from server.run.starting_adapter import starting_adapter

    starting_adapter(recorded(coordinator, earlier).folder / MODEL, settings)


def _watch(launch: Launch, turn: Turn, *, as_json: bool) -> None:
    """Watch a run to its end at this terminal, and exit as it ended."""
    from server.deployment.launch import federate_deployed, stop
    from server.scheduling.run_notes import note_failure

    console = terminal_console(stderr=as_json)
    console.print(f"run [bold]{escape(launch.run)}[/], folder {escape(str(launch.folder))}", highlight=False)
    tell = _teller(console, as_json=as_json)
    try:
        turn.await_turn(tell)
        state = federate_deployed(launch, tell)
    except KeyboardInterrupt:
        stop(launch)
        console.print(f"stopped; go on with: fedfuse run --resume {launch.run}", highlight=False)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except FedfuseError as error:
        note_failure(launch.folder, error)
        raise
    if as_json:
        typer.echo(json.dumps(state))
    else:
        ended = "INCOMPLETE" if state.get("state") == "incomplete" else "finished"
        for why in state.get("left_out", {}).values():
            console.print(f"[yellow]{escape(str(why))}[/]", highlight=False)
        console.print(f"{ended} after {state.get('round', 0)} rounds: {escape(str(state.get('why', '')))}", highlight=False)
    if state.get("state") == "incomplete":
        raise typer.Exit(ExitCode.INCOMPLETE)


def _detach(launch: Launch, *, as_json: bool) -> None:
    from server.scheduling.detached import LAUNCHER_LOG, start_detached

    process = start_detached(launch.coordinator, launch.run, restarts=launch.restarts)
    if as_json:
        typer.echo(json.dumps({"run": launch.run, "process": process, "log": str(launch.folder / LAUNCHER_LOG)}))
        return
    at = f" --server {shell_word(launch.coordinator.folder)}"
    typer.echo(f"run {launch.run} goes on by itself (process {process})")
    typer.echo(f"follow it:  fedfuse runs{at} --follow {launch.run}")
    typer.echo(f"end it:     fedfuse abort {launch.run}{at}")


def _teller(console: Console, *, as_json: bool) -> Callable[[dict[str, Any]], None]:
    def tell(event: dict[str, Any]) -> None:
        if as_json:
            typer.echo(json.dumps(event))
        elif event.get("kind") != "answered":
            console.print(f"[dim]round {event.get('round', 0):>3}[/]  {escape(str(event.get('text', '')))}", highlight=False)

    return tell


def runs_command(
    server: At = HERE,
    follow: Annotated[str, typer.Option(help="Show what this run does, from its beginning until it ends.")] = "",
    last: Annotated[int, typer.Option(min=0, help="Runs that are listed, the newest; 0: all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON; with --follow, a line an event.")] = False,
) -> None:
    """List the coordinator's runs: state, plan, rounds done, epsilon planned and spent, the version that was published.

    With --follow it exits as `fedfuse run` would have; Ctrl-C ends the following, not the run.
    """
    from server.deployment.folder import open_coordinator
    from server.operators.acting import log_of
    from server.scheduling.run_list import follow_run, list_runs

    coordinator = open_coordinator(server)
    console = terminal_console(stderr=as_json)
    if follow:
        ended = follow_run(coordinator, follow, _teller(console, as_json=as_json))
        if as_json:
            typer.echo(json.dumps(ended.to_json()))
        else:
            console.print(f"{ended.state} after {ended.round} rounds: {escape(ended.why)}", highlight=False)
        raise typer.Exit(ended.code)
    found = list_runs(coordinator, log=log_of(coordinator))
    shown = found[:last] if last else found
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in shown], indent=2))
        return
    console.print(_runs_table(shown) if shown else "there is no run yet: fedfuse run")
    if len(shown) < len(found):
        console.print(f"[dim]and {len(found) - len(shown)} older ones: --last 0[/]")


def abort_command(
    run: Annotated[str, typer.Argument(help="Name of the run: `fedfuse runs`.")],
    server: At = HERE,
    act_as: As = None,
) -> None:
    """End a run that is at work, or that waits in line. Its checkpoint stays, and what platforms have spent is spent."""
    from server.deployment.folder import open_coordinator
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb
    from server.scheduling.aborting import abort_run, require_going_on

    coordinator = open_coordinator(server)
    acting = acting_operator(coordinator, act_as, Right.RUN)
    found = require_going_on(coordinator, run)
    acting.record(Verb.ABORT, run, {"state": found.state, "round": str(found.round)})
    ended = abort_run(coordinator, run, by=acting.name)
    again = "" if ended.state == "finished" else f"; go on with it: fedfuse run --resume {run} --server {shell_word(server)}"
    typer.echo(f"run {run} is {ended.state} after {ended.round} rounds{again}")


_TONES = {"running": "bold", "queued": "bold", "finished": "green", "incomplete": "yellow", "failed": "red"}


def _runs_table(runs: list[RunSummary]) -> Table:
    table = terminal_table()
    for column in ("run", "state", "strategy", "rounds", "platforms", "ε planned", "ε spent", "version", "by", "began"):
        right = column in ("rounds", "ε planned", "ε spent", "version")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for one in runs:
        names = ", ".join(one.platforms)
        table.add_row(
            one.run,
            f"[{_TONES.get(one.state, 'dim')}]{one.state}[/]",
            one.strategy,
            f"{one.round} of {one.rounds}" if one.rounds else "-",
            names if len(names) <= 30 else f"{len(one.platforms)} platforms",
            f"{one.share:.0%} of what is left" if one.planned is None else f"{one.planned:g}",
            "-" if one.spent is None else f"{one.spent:.3g}",
            str(one.version or "-"),
            one.operator or "-",
            datetime.datetime.fromtimestamp(one.began, datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        )
    return table


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
    if not approved:
        raise InputError(
            "no platform is approved", where=str(coordinator.platforms), do="fedfuse invite NAME, then fedfuse approve"
        )
    if platforms > len(approved):
        raise InputError(
            f"{platforms} platforms are waited for, and {len(approved)} are approved: {', '.join(approved)}",
            where="--platforms",
            do="approve more, or wait for fewer",
        )
    strangers = sorted(set(only) - set(approved))
    if strangers:
        raise InputError(f"not approved: {', '.join(strangers)}", where="--only", do=f"approved are: {', '.join(approved)}")
    if only and platforms > len(only):
        raise InputError(
            f"{platforms} platforms are waited for, and --only names {len(only)}", where="--platforms, --only", do="name more"
        )
    name = name or f"{coordinator.file.name[:40]}-{time.strftime('%Y%m%d-%H%M%S')}"
    return Launch(coordinator=coordinator, run=name, settings=settings, nodes=platforms, only=only)


def _show_quotes(launch: Launch, *, as_json: bool) -> None:
    """Ask, print, and exit as the run would begin or not."""
    from server.deployment.launch import quotes_of

    said = terminal_console(stderr=True)
    found = quotes_of(launch, lambda event: said.print(f"[dim]{escape(str(event.get('text', '')))}[/]", highlight=False))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        table = terminal_table()
        for column in ("platform", "takes part", "ε it would spend", "ε left before", "after", "noise it needs", "why not"):
            table.add_column(
                column, justify="left" if column in ("platform", "takes part", "why not") else "right", overflow="fold"
            )
        for line in found.platforms:
            numbers = (line.epsilon, line.left, line.left_after, line.noise_multiplier)
            shown = ("-" if number is None else f"{number:.3g}" for number in numbers)
            table.add_row(line.platform, "yes" if line.takes_part else "[red]no[/]", *shown, escape(line.why))
        console = terminal_console()
        console.print(table)
        console.print(
            "the run would begin" if found.begins else f"[red]the run would not begin:[/] {escape(found.why)}", highlight=False
        )
        console.print("[dim]nothing was spent, and no ledger was written to[/]")
    if not found.begins:
        raise typer.Exit(ExitCode.REFUSED)
