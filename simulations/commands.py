"""`fedfuse simulate` and `fedfuse world`: virtual federations in this process."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from shared.base.errors import ExitCode, InputError, shell_word
from shared.base.setting_overrides import values_of, with_strategy
from shared.base.settings import Settings, build
from shared.base.terminal_table import terminal_console

world = typer.Typer(no_args_is_help=True, suggest_commands=False, help="Worlds: folders with one platform file per platform.")


@world.command("new")
def new(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the generated people, items and tastes.")] = 0,
    scale: Annotated[
        float | None, typer.Option(help="Factor of the four platforms' users and items; 1, the default, is what simulate runs.")
    ] = None,
    users: Annotated[
        int | None, typer.Option(help="Users of each platform: writes a world for measuring instead, of any size.")
    ] = None,
    items: Annotated[
        int | None, typer.Option(help="With --users: items of each platform; default: users / 20, at least 1,000.")
    ] = None,
    events: Annotated[int | None, typer.Option(help="With --users: rows of each platform; default: 20 a user.")] = None,
    platforms: Annotated[int | None, typer.Option(help="With --users: platforms of that size; default: 1.")] = None,
    in_common: Annotated[
        float | None, typer.Option(help="With --platforms: share of its range that each has in common with all; default: 0.5.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="With --users: events as CSV instead of Parquet.")] = False,
) -> None:
    """Write a generated world: four small platforms to be read by a person, or platforms of any size to be measured.

    \b
    fedfuse world new small                            two shops, a video site and a news site, with every kind of source
    fedfuse world new large --users 1000000 --items 50000 --events 20000000
                                                       one shop; a minute or two, a few hundred MB, memory that users do not fill
    fedfuse world new trade --users 5000 --platforms 8 --in-common 0.3
                                                       eight shops that have 30 % of their range in common

    The folder's README.md describes what it wrote; go on with `fedfuse check` or `fedfuse simulate`.
    """
    from simulations.worlds.generated import write_world
    from simulations.worlds.large import LargeSizes, write_large_world

    further = {"--items": items, "--events": events, "--platforms": platforms, "--in-common": in_common, "--csv": as_csv or None}
    if users is None:
        if given := [name for name, value in further.items() if value is not None]:
            raise InputError(
                f"{', '.join(given)} without --users", do="add --users, or leave it out: --scale sizes the small world"
            )
        made = write_world(folder, seed=seed, scale=1.0 if scale is None else scale)
    elif scale is not None:
        raise InputError("both --scale and --users", do="give one of them: --scale sizes the small world, --users the large one")
    else:
        sizes = LargeSizes(
            users=users,
            items=max(1000, users // 20) if items is None else items,
            events=20 * users if events is None else events,
            platforms=1 if platforms is None else platforms,
            in_common=0.5 if in_common is None else in_common,
        )
        made = write_large_world(folder, sizes, seed=seed, kind="csv" if as_csv else "parquet")
    typer.echo(f"{len(made.platforms)} platforms in {folder}: start with {folder / 'README.md'}")


@world.command("draft")
def draft_command(
    exports: Annotated[list[Path], typer.Argument(help="Files of one platform's tables, or folders of them.")],
    into: Annotated[Path, typer.Option(help="Folder of the world's platform files.")] = Path("world"),
    name: Annotated[str | None, typer.Option(help="Of the platform; by default the first export's.")] = None,
) -> None:
    """Draft a platform file from exported tables: kinds, columns, separators and dates are guessed, said, and yours to correct.

    \b
    fedfuse world draft orders.csv products.csv --name shop     writes world/shop.toml
    fedfuse world draft video-exports/                          ... and world/video-exports.toml
    fedfuse simulate world
    """
    from client.setup.guess_table import guessed_tables
    from client.setup.world_draft import draft_platform

    made = draft_platform(exports, into, name=name)
    terminal_console().print(guessed_tables(made.guesses, title=f"platform {made.name}: {made.users:,} users declared"))
    typer.echo(f"1. correct {made.path}: every guess has a line there, with a remark where it may be wrong")
    typer.echo(f"2. see what is read and what is left out: fedfuse check {shell_word(made.path)}")
    typer.echo(f"3. draft the other platforms into {into} (--into), then: fedfuse simulate {shell_word(into)}")


@world.command("deal")
def deal_command(
    world: Annotated[Path, typer.Argument(help="Folder with one platform file per platform.")],
    parts: Annotated[int, typer.Option(help="Platforms that each platform becomes.")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    seed: Annotated[int, typer.Option(help="Another seed deals the users otherwise.")] = 0,
) -> None:
    """Deal each platform's users to several platforms of the same kind, to see what it costs to be spread thin."""
    from simulations.worlds.repartition import deal_world
    from simulations.worlds.world import open_world

    made = deal_world(open_world(world), out, parts=parts, seed=seed)
    typer.echo(f"{len(made.platforms)} platforms in {out}")


def simulate_command(
    world: Annotated[
        Path | None, typer.Argument(help="Folder with one platform file per platform; without it, the generated world.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<time>.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings, such as a `run.toml`.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: --set training.learning_rate=0.005. May be repeated.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training; without a strategy's name, of fedavg.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="What is shared: 'preferences' (the default), or how adapters are trained and combined, as in ffa+median; "
            "`fedfuse strategies` lists them."
        ),
    ] = None,
    noise: Annotated[
        Literal["local", "distributed"] | None,
        typer.Option(help="'local': every platform adds all of it; 'distributed': it is shared, under a secure sum."),
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="Budget of every platform instead of its own; 'inf' turns privacy OFF.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="'minilm' (embedded), a folder, or the hub name of a BERT.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the adapter, the splits and (in a simulation) the noise.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder of an interrupted run, to go on with as it began.")
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Train on from this run's adapter, on today's rows; what its platforms have spent counts against their budget.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, as in 0..4 or 0,1,7: a run each, and intervals over users and seeds.")
    ] = None,
    per_user: Annotated[
        bool, typer.Option("--per-user", help="Write what every model makes of every user: RUN/users/PLATFORM.parquet.")
    ] = False,
    engine: Annotated[
        Literal["process", "ray"], typer.Option(help="'process' has no start-up; 'ray' is Flower's own simulation.")
    ] = "process",
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json on standard output instead of the table.")] = False,
) -> None:
    """Run a federation of virtual platforms, and compare what each can do by itself with what it can do having joined.

    \b
    fedfuse simulate                                   the generated world: which items are liked together
    fedfuse simulate --rounds 10                       ... and text adapters are trained
    fedfuse simulate my-world --epsilon 2 --rounds 20  your own platform files
    fedfuse simulate my-world --seeds 0..4 --out runs/a  five runs, and what they say together (more: fedfuse sweep)
    fedfuse simulate --resume runs/a                   go on after Ctrl-C
    fedfuse simulate my-world --from runs/a --rounds 5 train the adapter of a finished run on, with its ledgers
    """
    from simulations.run_folder import recorded_run, require_new_folder
    from simulations.worlds.world import open_world

    if engine == "ray" and find_spec("ray") is None:
        raise InputError(
            "Ray is not installed", where="--engine ray", do="pip install 'fedfuse[simulation]', or leave --engine out"
        )
    errors = terminal_console(stderr=True)
    options = {
        "rounds": rounds,
        "strategy": strategy,
        "seed": seed,
        "privacy.noise": noise,
        "privacy.epsilon": epsilon,
        "model.backbone": backbone,
    }
    given = [*(set_ or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
    if earlier is not None and (world is None or resume is not None or seeds is not None or engine != "process"):
        raise InputError(
            "--from needs a world, and goes with neither --resume, --seeds nor --engine ray",
            where="--from",
            do="fedfuse simulate WORLD --from RUN; an interrupted one is resumed without --from",
        )
    if seeds is not None:
        from simulations.study import seeds_of
        from simulations.study_command import run_and_show

        if seed is not None or resume is not None or engine != "process":
            raise InputError("--seeds with --seed, --resume or --engine", do="leave these out; the same --out goes on")
        run_and_show(
            world, [{}], seeds_of(seeds), out=out, config=config, common=given, as_json=as_json, again=f"simulate --seeds {seeds}"
        )
        return
    if resume is not None:
        if out is not None and out.resolve() != resume.resolve():
            raise InputError("--out names another folder than --resume", where=str(out), do="leave --out away")
        out, known = resume, recorded_run(resume)
        world = world or known.world
        settings = known.settings if config is None and not given else resumed_settings(known.settings, config, given)
    else:
        settings = settings_from(config, given)
    out = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    if world is None:
        world = out / "world"
        if not world.exists():
            if out.exists() and any(out.iterdir()):
                raise InputError("the run folder is not empty", where=str(out), do="name a new folder with --out")
            errors.print(f"no world named: generating one in {world}")
            from simulations.worlds.generated import write_world

            write_world(world)
    opened = open_world(world)
    if resume is None:
        require_new_folder(out, world=world)
    with loading(errors):  # after all that can be refused without them
        from simulations.run import Simulation, run_simulation
        from simulations.terminal import ProgressBoard
    plan = Simulation(
        world=opened,
        settings=settings,
        out=out,
        resume=resume is not None,
        ray=engine == "ray",
        per_user=per_user,
        earlier=earlier,
    )
    try:
        with ProgressBoard(errors, settings, platforms=len(plan.world.platforms)) as board:
            metrics = run_simulation(plan, events=board.event, progress=board.progress)
    except KeyboardInterrupt:
        typer.echo(f"go on with: fedfuse simulate --resume {shell_word(out)}", err=True)
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        typer.echo((out / "metrics.json").read_text(encoding="utf-8"), nl=False)
    else:
        _show_metrics(metrics, out)


def loading(console: Console) -> AbstractContextManager[object]:
    """Says that the libraries are loaded that take seconds: a line that goes on a terminal, else one that stays."""
    what = "loading torch and Flower"
    if console.is_terminal:
        return console.status(what)
    console.print(f"{what} ...")
    return nullcontext()


def _show_metrics(metrics: dict[str, Any], out: Path) -> None:
    from simulations.terminal import metrics_table
    from simulations.verdict import verdict

    console = terminal_console()
    console.print(metrics_table(metrics))
    for line in verdict(metrics):
        console.print(line, highlight=False, markup=False)
    for name, warnings in metrics["warnings"].items():
        for warning in warnings:
            console.print(f"warning: {name}: {warning}", highlight=False, markup=False)
    if metrics["stopped"]:
        console.print(metrics["stopped"]["why"], highlight=False, markup=False)
    if metrics["rounds"]:
        typer.echo(f"curves: tensorboard --logdir {shell_word(out / 'tensorboard')}")
    typer.echo(f"run folder: {out}  (next: fedfuse audit {shell_word(out)})")


def resumed_settings(known: Settings, config: Path | None, assignments: list[str]) -> Settings:
    """Settings of a run that is resumed, and over them those that a person gives now."""
    from simulations.run_folder import as_tables

    values = as_tables(known)
    for table, given in values_of(config, assignments).items():
        values[table] = {**values[table], **given} if isinstance(given, dict) and isinstance(values.get(table), dict) else given
    return build(values, where="the options")


def settings_from(config: Path | None, assignments: list[str]) -> Settings:
    """Settings of a simulation from a file and from `key=value` words, the words last.

    Raises:
        InputError: the file cannot be read, or a key or a value is wrong.
    """
    values = with_strategy(values_of(config, assignments))
    values["simulation"] = True
    privacy = values.setdefault("privacy", {})
    if isinstance(privacy, dict):
        # A simulation repeats itself exactly; a deployed platform refuses seeded noise.
        privacy.setdefault("generator", "seeded")
    return build(values, where=str(config) if config else "the options")
