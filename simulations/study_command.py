"""`fedfuse sweep`, and `fedfuse simulate --seeds`: several runs of one world, and what they say together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from shared.base.errors import ExitCode, InputError
from shared.base.settings import Settings
from shared.base.terminal_table import terminal_console

if TYPE_CHECKING:
    from simulations.study import StudyRun, Values


def sweep_command(
    world: Annotated[
        Path | None, typer.Argument(help="Folder with one platform file per platform; without it, the generated world.")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(help="Values of a setting, as in privacy.epsilon=1,4,8; may be repeated: all combinations are run."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="0..4, or 0,1,7.")] = "0..2",
    out: Annotated[Path | None, typer.Option(help="Folder of the study; one that is there is gone on with.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of the settings that all runs have in common.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting that all runs have in common.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")] = False,
) -> None:
    """Simulate a world under several settings and seeds; each figure with a 95 % interval over users and seeds.

    What is there is not run again, and what was interrupted goes on: give the same --out. More values or seeds may be added.
    results.csv and results.json have every figure, runs/ every run, with a Parquet table of its users.

    \b
    fedfuse sweep my-world --over privacy.epsilon=1,4,8 --seeds 0..4 --out studies/epsilon
    fedfuse sweep my-world --over strategy=ffa,rolora --over model.rank=4,8 --set rounds=20 --out studies/rank
    A plan whose update would be noise is refused, and said; --set privacy.accept_noise=true runs it, to report that it fails.
    """
    from simulations.commands import loading

    with loading(terminal_console(stderr=True)):  # before anything else can be said
        from simulations.study import seeds_of, varied

    run_and_show(
        world, varied(over or []), seeds_of(seeds), out=out, config=config, common=set_ or [], as_json=as_json, again="sweep"
    )


def run_and_show(
    world: Path | None,
    settings: Sequence[Values],
    seeds: Sequence[int],
    *,
    out: Path | None,
    config: Path | None,
    common: list[str],
    as_json: bool,
    again: str,
) -> None:
    """Run a study and print what it found.

    Args:
        settings: What is varied, one mapping for each setting.
        again: The command, for the message that says how to go on.
    """
    from simulations.commands import settings_from
    from simulations.study import RESULTS, StudyRun, run_study
    from simulations.study_table import study_table
    from simulations.terminal import ProgressBoard
    from simulations.worlds.generated import write_world
    from simulations.worlds.world import open_world

    out = out or Path("runs") / time.strftime("study-%Y%m%d-%H%M%S")
    errors = terminal_console(stderr=True)
    if world is None:
        world = out / "world"
        if not world.exists():
            errors.print(f"no world named: generating one in {world}")
            write_world(world)
    opened = open_world(world)
    runs = [StudyRun(values=values, seed=seed) for values in settings for seed in seeds]

    def settings_for(words: Sequence[str]) -> Settings:
        return settings_from(config, [*common, *words])

    def begins(run: StudyRun, done: int) -> None:
        errors.print(f"[bold]run {done + 1} of {len(runs)}:[/] {escape(', '.join(run.words))}", highlight=False)

    try:
        with ProgressBoard(errors, settings_for(runs[0].words), platforms=len(opened.platforms)) as board:
            found = run_study(opened, out, runs, settings_for, begins=begins, events=board.event, progress=board.progress)
    except KeyboardInterrupt:
        typer.echo(f"go on with the same command and --out {out} (fedfuse {again} ... --out {out})", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        typer.echo((out / f"{RESULTS}.json").read_text(encoding="utf-8"), nl=False)
    else:
        console = terminal_console()
        console.print(study_table(found))
        for name, why in found.refused.items():
            console.print(f"refused: {name}: {why}", highlight=False, markup=False)
        typer.echo(f"every figure: {out / f'{RESULTS}.csv'}; runs: {out / 'runs'}")
    if not found.figures:
        raise InputError("no run gave a figure", where=str(out), do="look at why runs were refused, and at the platforms' rows")
