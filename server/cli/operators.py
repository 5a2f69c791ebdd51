"""`fedfuse server operator` and `fedfuse log`: who may do what at a coordinator, and who did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from shared.base.errors import InputError
from shared.base.terminal_table import terminal_console, terminal_table

if TYPE_CHECKING:
    from server.deployment.launch import Launch
    from server.operators.log_writer import ActingOperator

At = Annotated[Path, typer.Option("--server", envvar="FEDFUSE_SERVER", help="The coordinator's folder.")]
As = Annotated[
    Path | None,
    typer.Option(
        "--as",
        envvar="FEDFUSE_OPERATOR",
        help="Your private key as an operator, '-' for one on standard input; default: the first operator's, in the folder.",
        show_default=False,
    ),
]
HERE = Path("coordinator")

operator = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Operators by name: who may invite, approve, revoke, run, publish and change certificates.",
)


@operator.command("key")
def operator_key(
    file: Annotated[Path, typer.Argument(help="A new file for the private key; the public one is FILE.pub.")],
) -> None:
    """Make a key of your own, on your own machine. Hand FILE.pub to an operator, and read out the fingerprint."""
    from server.operators.log_writer import public_text
    from shared.base.atomic_files import create_whole
    from shared.protocol.fingerprint_words import shown_fingerprint
    from shared.protocol.invitation import fingerprint_of
    from shared.protocol.keys import ed25519_line, make_ed25519

    public = file.with_name(f"{file.name}.pub")
    if public.exists():
        raise InputError("a key is there already", where=str(public), do="name another file; keys are not replaced")
    key = make_ed25519(file)
    create_whole(public, f"{ed25519_line(key.public_key())}\n".encode("ascii"))
    typer.echo(f"{file} is yours alone; hand over {public}")
    typer.echo(f"fingerprint {shown_fingerprint(fingerprint_of(public_text(key)))}: read it to the operator who adds you")


@operator.command("add")
def operator_add(
    name: Annotated[str, typer.Argument(help="Name: small letters, digits, - and _.")],
    key: Annotated[Path, typer.Option(help="Their public key, as `fedfuse server operator key` made it.")],
    may: Annotated[str, typer.Option(help="What they may do, comma-separated, or 'all': see `fedfuse server operator list`.")],
    server: At = HERE,
    act_as: As = None,
    fingerprint: Annotated[str, typer.Option(help="The fingerprint that they read out, for scripts.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprint was compared already.")] = False,
) -> None:
    """Let somebody operate this coordinator, or change what they may do: name, public key, and the rights from now on."""
    from base64 import b64encode

    from server.deployment.folder import open_coordinator
    from server.operators.acting import acting_operator
    from server.operators.operator_log import KEY, MAY
    from server.operators.rights import Right, Verb, rights_in, rights_text
    from shared.protocol.fingerprint_words import shown_fingerprint
    from shared.protocol.invitation import fingerprint_of
    from shared.registry.signing import load_trusted

    rights = rights_in(may)
    acting = acting_operator(open_coordinator(server), act_as, Right.OPERATORS)
    public = b64encode(load_trusted(key).raw).decode("ascii")
    found = fingerprint_of(public)
    typer.echo(f"{name}: fingerprint {shown_fingerprint(found)}")
    if not yes:
        require_compared(found, said=fingerprint, where=str(key), whom=name)
    acting.record(Verb.ADD_OPERATOR, name, {KEY: public, MAY: rights_text(rights), "fingerprint": found})
    typer.echo(f"{name} may: {rights_text(rights)}")


@operator.command("remove")
def operator_remove(
    name: Annotated[str, typer.Argument(help="Name of the operator.")], server: At = HERE, act_as: As = None
) -> None:
    """Take every right from an operator, from this moment on. What they did stays in the log."""
    from server.deployment.folder import open_coordinator
    from server.operators.acting import acting_operator
    from server.operators.rights import Right, Verb

    acting_operator(open_coordinator(server), act_as, Right.OPERATORS).record(Verb.REMOVE_OPERATOR, name)
    typer.echo(f"{name} is no operator any more")


@operator.command("list")
def operator_list(
    server: At = HERE, as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False
) -> None:
    """Show the operators, their keys' fingerprints and what they may do; and what each right is."""
    from server.deployment.folder import open_coordinator
    from server.operators.acting import log_of
    from server.operators.rights import Right, rights_text

    found = log_of(open_coordinator(server)).operators.values()
    if as_json:
        shown = [
            {
                "name": one.name,
                "fingerprint": one.fingerprint,
                "may": [right for right in Right if right in one.rights and not one.removed],
                "since": one.since,
                "removed": one.removed or None,
            }
            for one in found
        ]
        typer.echo(json.dumps(shown, indent=2))
        return
    table = terminal_table()
    for column in ("operator", "may", "since", "fingerprint"):
        table.add_column(column, overflow="fold")
    for one in found:
        rights = f"[dim]removed {one.removed}[/]" if one.removed else rights_text(one.rights)
        table.add_row(one.name, rights, one.since, one.fingerprint)
    console = terminal_console()
    console.print(table)
    for right in Right:
        console.print(f"[dim]{right:<12}[/] {right.meaning}", highlight=False)


def log_command(
    server: At = HERE,
    last: Annotated[int, typer.Option(min=0, help="Actions at its end that are shown; 0: all.")] = 20,
    verify: Annotated[
        bool, typer.Option("--verify", help="Say whether it holds: chain, signatures, rights, and the list of platforms.")
    ] = False,
    head: Annotated[str, typer.Option(help="With --verify: a head that somebody wrote down; the log must hold it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the actions as JSON, as the log has them.")] = False,
) -> None:
    """Show what operators did, and when: signed actions in a log that only grows.

    It is verified whenever it is read: a line that was altered, removed, or written by somebody who had no right is an error.

    \b
    fedfuse log                                  the last 20 actions
    fedfuse log --verify --head 3f9c...          and is it all that was written up to that head?

    \b
    Exit code 5: it was altered or cut, or the list of platforms says what it does not.
    """
    from server.deployment.folder import open_coordinator
    from server.operators.acting import log_of
    from server.operators.operator_log import AlteredLog
    from server.operators.restored_state import require_current

    coordinator = open_coordinator(server)
    log = log_of(coordinator)
    if head and not log.holds(head.strip().lower()):
        raise AlteredLog(
            "no action has the head that was written down: the end was cut off, or another history was written",
            where=str(coordinator.operators),
            do="restore the folder from a backup, and ask every operator what they did since",
        )
    if verify or head:
        require_current(coordinator, log)
    shown = log.actions[-last:] if last else log.actions
    if as_json:
        typer.echo(json.dumps({"head": log.head, "actions": [one.to_json() for one in shown]}, indent=2))
        return
    table = terminal_table()
    for column in ("#", "when", "who", "what", "of", "details"):
        table.add_column(column, justify="right" if column == "#" else "left", overflow="fold")
    for one in shown:
        details = ", ".join(f"{name} {text}" for name, text in one.details.items() if name != "key")
        table.add_row(str(one.seq), one.time, one.operator, one.verb, one.of, escape(details))
    console = terminal_console()
    console.print(table)
    if verify or head:
        console.print(f"it holds: {len(log.actions)} actions, each signed by who then had the right", highlight=False)
    console.print(f"head {log.head}", highlight=False, soft_wrap=True)


def require_compared(found: str, *, said: str, where: str, whom: str = "the platform's people") -> None:
    """Have a person compare a fingerprint before anything is done with what it is of.

    Raises:
        InputError: it differs from what was said, or nobody has compared it.
    """
    from shared.protocol.fingerprint_words import is_fingerprint

    if said:
        if not is_fingerprint(said, found):
            raise InputError(f"its fingerprint is {found}, and --fingerprint says {said}", where=where, do=f"ask {whom} again")
        return
    if not sys.stdin.isatty():
        raise InputError(
            "nobody is at a terminal to say whether the fingerprint was compared",
            where=where,
            do=f"compare it with {whom}, then: --fingerprint {found}",
        )
    if not typer.confirm(f"have you compared it with {whom}?"):
        raise InputError("nothing was written: the fingerprint was not compared", where=where, do="compare it, then go on")


def publisher(run: Path, key: Path, act_as: Path | None) -> ActingOperator | None:
    """Who publishes, where the run or the signing key is a coordinator's; None for a run of anybody's own.

    Raises:
        FedfuseError: as `server.operators.acting.acting_operator`.
    """
    from server.deployment.folder import NAME, open_coordinator
    from server.operators.acting import acting_operator
    from server.operators.rights import Right

    for folder in (*run.absolute().parents[:3], *key.absolute().parents[:2]):
        if (folder / NAME).is_file():
            return acting_operator(open_coordinator(folder), act_as, Right.PUBLISH)
    return None


def launch_details(launch: Launch) -> dict[str, str]:
    """What the log says of a run that is asked for."""
    from shared.base.settings import settings_digest

    settings = launch.settings
    share = f"{settings.privacy.share:g} of what is left"
    return {
        "strategy": settings.strategy,
        "rounds": str(settings.rounds),
        "epsilon": share if settings.privacy.epsilon is None else f"{settings.privacy.epsilon:g}",
        "only": ",".join(launch.only),
        "from": launch.start,
        "settings": settings_digest(settings),
        "publishes": "yes" if launch.publish and launch.coordinator.file.registry else "no",
    }
