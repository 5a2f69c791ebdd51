"""`fedfuse poc`: a federation of real processes on this machine, for a first look."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from shared.base.errors import ExitCode, FedfuseError, InputError, shell_word
from simulations.poc.poc_folder import USUAL, PocFolder

Dir = Annotated[Path, typer.Option("--dir", help="The folder that holds all of it.")]
DirOfStarted = Annotated[Path | None, typer.Option("--dir", help="The folder that holds all of it.", show_default=str(USUAL))]
"""The option of commands about a running federation. It may also be given before the command's name."""

poc = typer.Typer(
    suggest_commands=False,
    invoke_without_command=True,
    help="A coordinator and three platforms as real processes on this machine: started, run once, left running.",
)


@poc.callback()
def poc_start(context: typer.Context, folder: Dir = USUAL) -> None:
    """Start a coordinator and three shops on this machine, run a federation, and leave them running.

    With TLS, invitations, approvals, keys, cages and a secure sum, as docs/deploy.md has it between companies. Everything is in
    one folder; nothing but 127.0.0.1 is used.

    \b
    fedfuse poc                 a few minutes
    fedfuse poc status
    fedfuse poc stop            and `fedfuse poc` starts the same again
    """
    if context.invoked_subcommand is not None:
        context.obj = folder
        return
    from simulations.poc.first_federation import FirstFederation
    from simulations.poc.processes import processes_in, require_proc, stop_processes

    require_proc()
    place = PocFolder.at(folder)
    with place.alone():
        running = processes_in(place.root)
        complete = place.exists and place.complete
        if complete:
            place.require_unmoved()
        if running and complete:
            raise InputError(
                f"it runs already: {len(running)} processes",
                where=str(folder),
                do=f"{_program()} poc status{place.option}, or: {_program()} poc stop{place.option}",
            )
        if running:
            typer.echo("an earlier start was killed half-way; what it left running is stopped")
            stop_processes(place.root)
        if place.exists and not complete:
            typer.echo(f"{folder} is of a start that did not reach its end; it is made anew")
        command = context.find_root().command
        federation = FirstFederation(
            place,
            invoke=lambda words: _invoke(command, words),
            follow=lambda words: _follow(command, words),
            tell=typer.echo,
        )
        try:
            if complete:
                federation.start_again()
            else:
                federation.make_and_run()
        except BaseException:
            # Half a federation is of no use, and nobody would know what runs.
            stop_processes(place.root)
            raise
    typer.echo("\nIt runs, and goes on until it is stopped. Try:")
    _show_commands(place)


@poc.command("status")
def poc_status(
    context: typer.Context,
    folder: DirOfStarted = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show what runs, whether the platforms are connected, and what to try. Exit code 1 if not all of it runs."""
    from simulations.poc.processes import require_proc

    require_proc()
    place = PocFolder.at(folder or context.obj)
    found = _status(place)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        own = [one for one in found["processes"] if one["part"] in ("server", "client", "worker")]
        for one in own:
            typer.echo(f"{one['place'] or '-':<12} {one['part']:<10} process {one['pid']:<8} for {one['seconds']:.0f} s")
        if rest := len(found["processes"]) - len(own):
            typer.echo(f"{'':<12} and {rest} processes that these have started")
        for name, connection in found["platforms"].items():
            typer.echo(f"{name:<12} {connection}")
        typer.echo(found["state"])
        if found["state"] == "runs":
            _show_commands(place)
    if found["state"] != "runs":
        raise typer.Exit(ExitCode.FAILED)


@poc.command("stop")
def poc_stop(context: typer.Context, folder: DirOfStarted = None) -> None:
    """End all processes of the federation, also those that a killed `fedfuse poc` has left. The folder stays."""
    from simulations.poc.processes import require_proc, stop_processes

    require_proc()
    place = PocFolder.at(folder or context.obj)
    complete = place.complete
    if (holder := place.holder()) is not None:
        typer.echo(f"process {holder} is still starting it; it is stopped")
        with suppress(ProcessLookupError):
            os.kill(holder, signal.SIGTERM)
    with place.alone(wait=60.0):
        count = stop_processes(place.root)
    typer.echo(f"{count} processes are stopped" if count else "nothing ran")
    again = f"{_program()} poc{place.option}"
    typer.echo(f"start it again: {again}" if complete else f"it had not reached its end; start anew: {again}")


def _follow(command: click.Command, words: Sequence[str]) -> int:
    """Run another command of Fedfuse in this process; its exit code."""
    # Another process would first import the same once more, which costs seconds for each of a dozen commands.
    code = command.main(args=list(words), prog_name="fedfuse", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _invoke(command: click.Command, words: Sequence[str]) -> str:
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = _follow(command, words)
    if code:
        raise FedfuseError(f"fedfuse {shlex.join(words)}: {code}", do="see what it says", quote=errors.getvalue()[-2000:])
    return out.getvalue()


def _status(place: PocFolder) -> dict[str, Any]:
    from server.deployment.folder import open_coordinator
    from server.deployment.status import status_of
    from simulations.poc.processes import processes_in

    complete, holder, running = place.complete, place.holder(), processes_in(place.root)
    platforms: dict[str, str] = {}
    with suppress(FedfuseError):  # it may not have been made yet
        platforms = {one.name: one.connection for one in status_of(open_coordinator(place.coordinator)).platforms}
    if holder is not None:
        state = f"is being started by process {holder}"
    elif not running:
        state = "stopped" if complete else "stopped before its end"
    elif complete and any(one.part == "server" for one in running):
        joined = {one.place for one in running if one.part == "client"}
        missing = [name for name, connection in platforms.items() if name not in joined and connection != "shut out"]
        state = f"does not run in whole: {', '.join(missing)} missing" if missing else "runs"
    else:
        state = "does not run in whole: the coordinator's server missing" if complete else "an earlier start was killed half-way"
    return {"state": state, "folder": str(place.root), "platforms": platforms, "processes": [vars(one) for one in running]}


def _show_commands(place: PocFolder) -> None:
    from simulations.poc.first_federation import commands_to_try

    for words, what in commands_to_try(place, _program()):
        typer.echo(f"\n  # {what}\n  {words}")


def _program() -> str:
    """How this command was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    if called.name != "fedfuse":
        return f"{shell_word(sys.executable)} -m fedfuse"
    found = shutil.which("fedfuse")
    return "fedfuse" if found is not None and Path(found).resolve() == called.resolve() else shell_word(called)
