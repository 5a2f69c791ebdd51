"""The command `fedfuse`, which joins the commands of all packages."""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import typer
from click.exceptions import NoArgsIsHelpError
from rich.markup import escape

from client.cli.check import check
from client.cli.deployment import client as client_app
from client.cli.deployment import init_client_command
from client.cli.embed import embed_command
from client.cli.facts import facts_command
from client.cli.local import evaluate_command, recommend_command
from client.cli.serving import serve_command
from server.cli.audit import audit, ledger
from server.cli.authority import authority_command
from server.cli.deployment import approve, init_server_command, invite_command, revoke, server_status
from server.cli.deployment import server as server_app
from server.cli.local import models, publish, pull_command, settings_command, strategies
from server.cli.operators import log_command
from server.cli.report import report_command
from server.cli.run import abort_command, run_command, runs_command
from shared.base.errors import ExitCode, FedfuseError, InputError
from shared.base.logs import Form, configure, log_environment
from shared.base.nearest_names import nearest_names
from shared.base.terminal_table import terminal_console
from shared.base.version import VERSION
from shared.deploy.service_files import ServiceKind
from simulations.attack.command import attack_command
from simulations.commands import simulate_command, world
from simulations.poc.commands import poc
from simulations.study_command import sweep_command


def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A coordinator's or a platform's folder; default: this one, if it is one.", show_default=False, readable=False
        ),
    ] = None,
    socket: Annotated[
        Path | None,
        typer.Option(help="A platform's: the worker's socket; default: socket/worker.sock in the folder.", readable=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Look for what would keep a coordinator or a platform from working: each line says ok, warning or error, and the cure.

    Without a folder it looks at this machine alone; in a container of a platform's worker or messenger, at that half.
    Exit code 0 where nothing is in the way (warnings included), else 1.
    """
    from client.supernode.checkup import check_cage, check_platform, written_folder
    from server.deployment.checkup import check_coordinator, check_default_ports
    from server.deployment.folder import NAME as SERVER_TOML
    from shared.doctor.findings import Level, exit_code, findings_json
    from shared.doctor.machine import check_machine

    place = folder or Path()
    if not place.is_dir():
        raise InputError("there is no such folder", where=str(place), do="name a coordinator's or a platform's")
    written = written_folder(place.absolute())
    found = list(check_machine(written or place.absolute(), environment=os.environ))
    if (place / SERVER_TOML).is_file():
        found += check_coordinator(place)
    elif written is not None:
        found += check_platform(place, at=socket)
    elif folder is not None:
        raise InputError(
            "is neither a coordinator's folder nor a platform's",
            where=str(place),
            do="name one that `fedfuse init` made, or none",
        )
    else:
        found += [check_cage(), *check_default_ports()]
    if as_json:
        typer.echo(json.dumps(findings_json(found), indent=2))
    else:
        console, style = terminal_console(), {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}
        for one in found:
            console.print(
                f"[{style[one.level]}]{one.level:<7}[/] {escape(one.what)}: {escape(one.found)}", highlight=False, soft_wrap=True
            )
            if one.cure:
                console.print(f"        do: {escape(one.cure)}", highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code(found))


deploy = typer.Typer(no_args_is_help=True, suggest_commands=False, help="What service managers run Fedfuse with.")


@deploy.command("files")
def deploy_files_command(
    folder: Annotated[Path, typer.Argument(help="Where to write them: a folder of each kind.")],
    kind: Annotated[list[ServiceKind] | None, typer.Option(help="Only this kind; may be repeated. Default: all.")] = None,
    program: Annotated[
        str, typer.Option(help="Path of the fedfuse command, for systemd; default: the one that is installed here.")
    ] = "",
) -> None:
    """Write systemd units, Compose files, a Dockerfile, Helm charts and dashboards into a folder, to be read and adapted.

    Nothing that is there already is written over.
    """
    from shared.deploy.service_files import PROGRAM, installed_program, write_service_files

    named = program or str(installed_program() or PROGRAM)
    done = write_service_files(folder, tuple(kind or ServiceKind), program=named)
    for path in done.written:
        typer.echo(path)
    if done.same:
        typer.echo(f"{len(done.same)} were there already, unchanged")
    if named.startswith(("/home/", "/root/")):
        typer.echo(f"warning: the units close /home and /root, where {named} is: install it elsewhere (/opt)", err=True)


app = typer.Typer(
    name="fedfuse",
    no_args_is_help=True,
    suggest_commands=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated, private recommenders: platforms train one model together and pool no row.",
    epilog=f"Exit codes: {'; '.join(f'{code} {code.meaning}' for code in ExitCode)}.",
)
TRY, PLATFORM, COORDINATOR, EVERYONE = "Try it", "On a platform", "At the coordinator", "For everyone"
DEPLOY = "Deploy it"
app.command("simulate", rich_help_panel=TRY)(simulate_command)
app.command("sweep", rich_help_panel=TRY)(sweep_command)
app.add_typer(world, name="world", rich_help_panel=TRY)
app.add_typer(poc, name="poc", rich_help_panel=TRY)
app.command("check", rich_help_panel=PLATFORM)(check)
app.command("recommend", rich_help_panel=PLATFORM)(recommend_command)
app.command("serve", rich_help_panel=PLATFORM)(serve_command)
app.command("evaluate", rich_help_panel=PLATFORM)(evaluate_command)
app.command("embed", rich_help_panel=PLATFORM)(embed_command)
app.command("facts", rich_help_panel=PLATFORM)(facts_command)
init = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Make the folder of a coordinator (server) or of a platform (client)."
)
init.command("server")(init_server_command)
init.command("client")(init_client_command)
app.add_typer(init, name="init", rich_help_panel=DEPLOY)
app.add_typer(deploy, name="deploy", rich_help_panel=DEPLOY)
app.add_typer(client_app, name="client", rich_help_panel=PLATFORM)
server_app.command("authority")(authority_command)
app.add_typer(server_app, name="server", rich_help_panel=COORDINATOR)
for name, command in (
    ("invite", invite_command),
    ("approve", approve),
    ("revoke", revoke),
    ("run", run_command),
    ("runs", runs_command),
    ("abort", abort_command),
    ("status", server_status),
    ("log", log_command),
    ("publish", publish),
):
    app.command(name, rich_help_panel=COORDINATOR)(command)
audit.command("attack")(attack_command)
app.add_typer(audit, name="audit", rich_help_panel=EVERYONE)
app.add_typer(ledger, name="ledger", rich_help_panel=EVERYONE)
app.command("report", rich_help_panel=EVERYONE)(report_command)
app.command("pull", rich_help_panel=EVERYONE)(pull_command)
app.command("models", rich_help_panel=EVERYONE)(models)
app.command("doctor", rich_help_panel=EVERYONE)(doctor)
app.command("strategies", rich_help_panel=EVERYONE)(strategies)
app.command("settings", rich_help_panel=EVERYONE)(settings_command)


def _reflow(commands: typer.Typer) -> None:
    """Let paragraphs of help be as wide as the terminal; only the lines of one that begins with \\b are its own."""
    for info in commands.registered_commands:
        paragraphs = (info.help or inspect.getdoc(info.callback) or "").split("\n\n")
        info.help = "\n\n".join(one if one.startswith("\b") else " ".join(one.split("\n")) for one in paragraphs)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _reflow(group.typer_instance)


_reflow(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedfuse {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show the log."),
    log_format: Annotated[Form, typer.Option(help="How log lines look: text, or one JSON object a line.")] = Form.TEXT,
) -> None:
    configure("fedfuse", form=log_format, level="info" if verbose or log_format is Form.JSON else "error")
    if verbose or log_format is Form.JSON:
        os.environ.update(log_environment(log_format))  # for the processes that a command starts
    else:
        # What takes half a minute before anything moves, and why everything takes longer than it might, is said unasked.
        logging.getLogger("fedfuse.compile").setLevel(logging.INFO)


def main() -> None:
    """Run the command; a person's mistake is one clear message and an exit code, never a traceback."""
    # Nothing that others may write into is made, whatever the umask; a group keeps what its people chose.
    os.umask(os.umask(0o077) | 0o002)
    try:
        # Without click's own error handling, an exit code comes back as the result.
        code = app(standalone_mode=False)
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        if isinstance(code, int) and code != ExitCode.OK:
            sys.exit(code)
    except FedfuseError as error:
        _fail(error.exit_code, error.found, where=error.where, do=error.do, quote=error.quote)
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped", "what was written stays")
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except OSError as error:
        where = str(error.filename or "a file of the run")
        _fail(ExitCode.STORAGE, str(error.strerror or error), where=where, do="check space and rights")
    except NoArgsIsHelpError as bare:
        print(bare.ctx.get_help() if bare.ctx else "")
        sys.exit(ExitCode.USAGE)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        if hasattr(error, "possibilities") and hasattr(error, "option_name"):
            # The dashes that all options share are no likeness.
            name = str(error.option_name).lstrip("-")
            error.possibilities = [one for one in error.possibilities or () if nearest_names(name, [one.lstrip("-")])]
        context = getattr(error, "ctx", None)
        _fail(ExitCode.USAGE, usage(), do=f"{context.command_path} --help" if context is not None else "")


def _fail(code: ExitCode, found: str, *, where: str = "", do: str = "", quote: str = "") -> NoReturn:
    """Say what was wrong: for a person, and where `--json` was asked for, for a machine, on standard output."""
    if "--json" in sys.argv[1:]:
        said = {"it_says": quote} if quote else {}
        print(json.dumps({"error": {"found": found, **said, "where": where, "do": do, "exit_code": int(code)}}))
    _say("error", str(FedfuseError(found, where=where, do=do, quote=quote)))
    sys.exit(code)


def _say(kind: str, text: str) -> None:
    console = terminal_console(stderr=True)
    console.print(f"[bold red]{kind}:[/] ", end="")
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
