"""`fedfuse audit attack`: attack a run of one's own world, and hold what is proven against what is claimed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer


def attack_command(
    world: Annotated[Path, typer.Argument(help="Folder with one platform file per platform; nothing is written to it.")],
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the run and the result (attack.json); by default, one that is removed.")
    ] = None,
    platform: Annotated[str, typer.Option(help="Platform that the canary users are on; default: who shares most.")] = "",
    canaries: Annotated[int | None, typer.Option(min=20, help="Canary users, at most; half of them are in.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings, such as a `run.toml`.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as of `fedfuse simulate`.")] = None,
    noise: Annotated[
        str,
        typer.Option(help="'local': a platform's answer is attacked; 'distributed': the sum that the coordinator sees."),
    ] = "local",
    epsilon: Annotated[str | None, typer.Option(help="Budget of every platform instead of its own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Insert canary users (half of them in), run once, and prove a lower bound of epsilon with confidence 95%.

    White box: sees all that was released, and knows all rows but the canaries'. Black box: has the published model alone.

    Exit code 0: what is claimed is not refuted. 1: it is. 2: it could not be attacked.
    """
    from server.cli.audit import AuditCode, leave_unjudged
    from server.report.subject import ATTACK
    from shared.base.atomic_files import write_whole
    from shared.base.errors import FedfuseError
    from shared.base.terminal_table import terminal_console
    from simulations.attack.attack_report import render_attack
    from simulations.attack.attacked_run import attack_world
    from simulations.commands import settings_from
    from simulations.worlds.world import open_world

    words = [*(set_ or []), f"privacy.noise={noise}", *([f"privacy.epsilon={epsilon}"] if epsilon is not None else [])]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            report = attack_world(
                open_world(world),
                settings_from(config, words),
                out or Path(temporary) / "run",
                platform=platform,
                canaries=canaries,
            )
            if out is not None:
                write_whole(out / ATTACK, (report.to_json() + "\n").encode())
    except (FedfuseError, OSError) as error:
        leave_unjudged(error, as_json=as_json)
    if as_json:
        typer.echo(report.to_json())
    else:
        terminal_console().print(render_attack(report))
    raise typer.Exit(AuditCode.UNSOUND if report.refuted else AuditCode.SOUND)
