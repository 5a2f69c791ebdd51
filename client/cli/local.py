"""`fedfuse evaluate` and `fedfuse recommend`: what a platform's own people run beside their data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli.model_options import ModelOption, TextsOption, TrustOption, trusted_keys
from client.cli.progress_lines import Told, trunk_and_state
from shared.base.errors import InputError
from shared.base.terminal_table import terminal_console, terminal_table


def recommend_command(
    platform: Annotated[Path, typer.Option(help="The platform file, or its folder.", readable=False)],
    model: ModelOption = None,
    trust: TrustOption = None,
    user: Annotated[str | None, typer.Option(help="Id of the user, as in the platform's own tables.")] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            help="Id or key of an item that somebody who is in no table likes, in the place of --user; may be repeated."
        ),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="For every user of the platform, to --out.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --all: a .parquet or .csv file of user, rank, item, score and probability.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many items.")] = 10,
    private: Annotated[
        bool, typer.Option("--private", help="Use what was released alone, and no other user's row: for lists shown in public.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the parts of each score, and the items of the history that carry it.")
    ] = False,
    diversity: Annotated[
        float, typer.Option(help="From 0, by score alone, to 1, each item as unlike those before it as can be.")
    ] = 0.0,
    cap: Annotated[
        list[str] | None, typer.Option(help="Most items of one value of an attribute, as category=2; may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="What items must be: category=Drama|Comedy, category!=Horror, year>=1990, price<=20; may be repeated.",
        ),
    ] = None,
    seen: Annotated[bool, typer.Option("--seen", help="Include items that the user has had already.")] = False,
    texts: TextsOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the items as JSON, with the parts of each score and what carries it.")
    ] = False,
) -> None:
    """Recommend items that the user has not had, by the platform's own rows and a pulled global model, and say why.

    Nothing leaves the platform. What was fitted is kept in its state folder (mode 0600) until a source or an option changes, so
    that the next call answers at once.

    \b
    fedfuse recommend --platform shop.toml --user 42              ten items, and why
    fedfuse recommend --platform shop.toml --user 42 --explain    with the parts of each score
    fedfuse recommend --platform shop.toml --user 42 --diversity 0.3 --cap category=2 --filter "price<=20"
    fedfuse recommend --platform shop.toml --like 978-0306406157  for somebody who is in no table
    fedfuse recommend --platform shop.toml --all --out top.parquet
                                                                  for everybody; goes on where it was interrupted
    """
    from client.config.deployment_folder import platform_file_in
    from client.config.platform_file import load
    from client.recommender.lists.item_attributes import AttributeFilter, parsed_cap
    from client.recommender.lists.recommended import ListRules
    from client.recommender.serving.recommend import recommend_items

    if everybody != (out is not None):
        raise InputError("--all and --out go together", do="give both, or --user or --like")
    one_list = (user is not None, like, private, as_json, explain, diversity, cap, only, seen)
    if out is not None and any(one_list):
        raise InputError("--all with an option of one person's list", do="name --top, --model and --texts alone beside --out")
    rules = ListRules(
        top=top,
        diversity=diversity,
        caps=dict(parsed_cap(text) for text in cap or ()),
        filters=[AttributeFilter.parsed(text) for text in only or ()],
        seen=seen,
    )
    file = load(platform_file_in(platform))
    cache, state = trunk_and_state(file, model)
    trusted = trusted_keys(model, trust)
    if out is not None:
        from client.recommender.serving.recommend_all import recommend_everybody

        with Told(file.privacy_warnings) as told:
            users = recommend_everybody(
                file,
                out=out,
                model=model,
                top=top,
                texts=texts,
                cache=cache,
                state=state,
                trusted=trusted,
                say=told.say,
                tell=told.tell,
                progress=told.progress,
            )
        typer.echo(f"{users:,} users in {out}: they are this platform's own, keep them there")
        return
    with Told(file.privacy_warnings) as told:
        items = recommend_items(
            file,
            model=model,
            user=user,
            like=like or (),
            rules=rules,
            released_alone=private,
            texts=texts,
            cache=cache,
            state=state,
            trusted=trusted,
            say=told.say,
            tell=told.tell,
            progress=told.progress,
        )
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in items], indent=2, ensure_ascii=False))
        return
    whom = f"user {user}" if user is not None else "somebody who likes " + ", ".join(like or ())
    _show_list(f"{file.name}: for {whom}", items, explain=explain)


def _show_list(title: str, items: Sequence[Any], *, explain: bool) -> None:
    console = terminal_console()
    if explain:
        console.print(f"[bold]{escape(title)}[/]", highlight=False)
        for item in items:
            _show_reasons(console, item)
        return
    table = terminal_table(escape(title))
    for name in ("rank", "item", "title", "score", "because"):
        table.add_column(name, justify="right" if name in ("rank", "score") else "left", overflow="fold")
    for item in items:
        table.add_row(str(item.rank), escape(item.item), escape(item.title), f"{item.score:.3g}", escape(item.because))
    console.print(table)


def _show_reasons(console: Console, item: Any) -> None:
    """One item with both accounts of its score, each of which adds up to it in all the digits that are shown."""
    history = [(one.title, one.adds) for one in item.from_history]
    history += [("further items of the history", item.further_history)] if item.further_history else []
    history += [("not from the history", item.besides_history)] if item.besides_history else []
    console.print(f"\n{item.rank:>3}  [bold]{escape(item.title)}[/]  {escape(item.item)}", highlight=False, soft_wrap=True)
    accounts = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right"):
        accounts.add_column(justify=justify, overflow="fold")
    accounts.add_row("     because", escape(item.because), "")
    for name, parts in (("parts", list(item.parts.items())), ("carried by", history)):
        for place, (what, adds) in enumerate(parts):
            accounts.add_row("" if place else f"     {name}", escape(what), f"{adds:+.6f}")
    accounts.add_row("     score", "", f"[bold]{item.score:.6f}[/]")
    console.print(accounts, highlight=False)


def evaluate_command(
    platform: Annotated[Path, typer.Argument(help="The platform file, or its folder.", readable=False)],
    model: ModelOption = None,
    trust: TrustOption = None,
    texts: TextsOption = False,
    seed: Annotated[int, typer.Option(help="Which items are held out where there are no times: the run's seed.")] = 0,
    k: Annotated[str, typer.Option("--k", help="Lengths of the lists that are judged.")] = "5,10,20",
    by: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE.COLUMN of profiles or items: a segment for each of its values; may be repeated."),
    ] = None,
    users: Annotated[
        int, typer.Option(min=0, help="Users whose held-out items are ranked, drawn at random where there are more; 0: all.")
    ] = 10_000,
    plot: Annotated[
        Path | None, typer.Option(help="A .svg or .png file for the diagram of how calibrated probabilities are.")
    ] = None,
    per_user: Annotated[
        Path | None, typer.Option(help="A Parquet file for what every model makes of every user that is ranked.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Compare the platform's own model, a pulled model, and both together, on the platform's held-out items.

    Lists are judged by NDCG, hit rate, reciprocal rank, coverage, diversity and novelty; calibrated probabilities by accuracy,
    precision, recall, F1, AUC, log loss and calibration error; each with a 95 % interval, by segment (docs/evaluating.md).

    The figures are exact and therefore private: nothing of them is sent, and they should not leave the platform.

    \b
    fedfuse evaluate shop.toml --model model --k 5,10,20 --plot reliability.svg
    fedfuse evaluate shop.toml --by profiles.gender --by products.department --json
    """
    from client.cli.quality_tables import lengths_of, quality_tables
    from client.config.deployment_folder import platform_file_in
    from client.config.platform_file import load
    from client.evaluation.reliability_plot import plot_reliability, require_plots
    from client.recommender.own_evaluation import evaluate_platform
    from client.recommender.quality.per_user_table import write_per_user

    try:
        lengths = lengths_of(k)
    except ValueError:
        raise InputError(f"--k {k!r} is no list of lengths", do="write numbers with commas between them: 5,10,20") from None
    if plot is not None:
        require_plots(plot)
    file = load(platform_file_in(platform))
    cache, state = trunk_and_state(file, model)
    trusted = trusted_keys(model, trust)
    with Told(file.privacy_warnings) as told:
        found = evaluate_platform(
            file,
            model=model,
            seed=seed,
            texts=texts,
            cache=cache,
            state=state,
            trusted=trusted,
            say=told.say,
            tell=told.tell,
            progress=told.progress,
            lengths=lengths,
            by=by or (),
            most_users=users,
        )
        if plot is not None and found.quality is not None:
            plot_reliability(plot, found.quality.reliability, title=f"{file.name}: calibration on held-out users")
        if per_user is not None:
            write_per_user(per_user, found.ranked, users=found.user_ids, held=found.held)
    if as_json:
        values = {"platform": file.name, "exact": True, "private": True, **found.as_dict()}
        typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    _show_evaluation(file.name, found, [] if found.quality is None else quality_tables(file.name, found.quality))


def _show_evaluation(name: str, found: Any, further: Sequence[Table]) -> None:
    from shared.protocol.quality import METRICS

    table = terminal_table(f"{name}: held-out items")
    for column in ("segment", "users", "model", *(METRICS[metric].title for metric in found.metrics), "fused - own (95 %)"):
        table.add_column(column, justify="left" if column in ("segment", "model") else "right")
    for place, (segment, values) in enumerate(found.comparison.segments.items()):
        if place:
            table.add_section()
        if not values.users:
            table.add_row(segment, "0", "-", *("-" for _ in found.metrics), "")
        for row, (model, quality) in enumerate(values.quality.items()):
            gain = values.gain if model == "fused" else None
            shown = "" if gain is None else f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
            first = (segment, f"{values.users:,}") if not row else ("", "")
            table.add_row(*first, model, *(f"{quality[metric]:.4f}" for metric in found.metrics), shown)
    console = terminal_console()
    console.print(table)
    for one in further:
        console.print(one)
    for line in found.lines:
        console.print(escape(line), soft_wrap=True)
    console.print("[dim]exact and private: nothing of this was sent, and it should not leave the platform[/]")
