"""`fedfuse check`, `fedfuse evaluate` and `fedfuse recommend`: what a platform's own people run beside their data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.cli.model_options import ModelOption, TextsOption, TrustOption, trusted_keys
from client.cli.progress_lines import Told, trunk_and_state
from shared.base.errors import ExitCode, FedfuseError, InputError, PrivacyError
from shared.base.settings import Settings
from shared.base.terminal_table import terminal_table

if TYPE_CHECKING:
    from client.config.platform_file import PlatformFile
    from client.sources.tables import SourceReport

_WIDE = 2
"""By how much declared users may differ from those that there are, before it is said."""
_EVENTS = 20
"""Events of one source that are shown on a terminal."""


def check(
    platform: Annotated[Path, typer.Argument(help="A platform file, its folder, or a world's folder with several.")],
    config: Annotated[Path | None, typer.Option(help="TOML file of the planned run's settings (a run.toml will do).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Read a platform's sources and show what they give: rows, fused examples, and the epsilon of the planned run.

    Of a world, every platform's, and how many items each two have in common. Nothing is trained, charged or sent. What is shown
    are the platforms' own rows: keep it there. Where the planned run would be refused, the exit code says so.
    """
    from client.config.deployment_folder import platform_files_in
    from shared.base.setting_overrides import settings_of

    settings = settings_of(config, [])
    reports: list[dict[str, Any]] = []
    items: dict[str, set[int]] = {}
    files = platform_files_in(platform)
    failed: list[tuple[Path, FedfuseError]] = []
    for file in files:
        try:
            report, hashes = _checked(file, settings)
        except FedfuseError as error:
            failed.append((file, error))
            continue
        reports.append(report)
        items[report["platform"]] = hashes
        if not as_json:
            _show(report)
            print()
    if failed:
        raise _all_of(failed)
    common = {f"{one}, {other}": len(items[one] & items[other]) for one, other in itertools.combinations(items, 2)}
    if as_json:
        found = reports[0] if len(files) == 1 else {"platforms": reports, "items_in_common": common}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        if common:
            shown = "; ".join(f"{escape(pair)} {count:,}" for pair, count in common.items())
            Console(emoji=False).print(f"[bold]items in common:[/] {shown}")
        Console(emoji=False).print("[dim]nothing was trained, charged or sent[/]")
    if not all(report["forecast"]["possible"] for report in reports):
        raise typer.Exit(ExitCode.PRIVACY)


def _all_of(failed: Sequence[tuple[Path, FedfuseError]]) -> FedfuseError:
    """One error of all platforms of a world that cannot be read, so that nobody has to mend them one after the other."""
    if len(failed) == 1:
        return failed[0][1]
    said = [f"{path.name}: {str(error).replace(chr(10), chr(10) + '  ')}" for path, error in failed]
    error = FedfuseError(f"{len(failed)} platforms cannot be used", quote="\n".join(said), do="mend each as it says")
    error.exit_code = failed[0][1].exit_code
    return error


def _checked(path: Path, settings: Settings) -> tuple[dict[str, Any], set[int]]:
    """What is to be said of one platform, and the hashes by which others find its items."""
    from client.config.platform_file import load
    from client.examples.preview import preview
    from client.sources.item_keys import hashes_of
    from client.sources.kinds.interactions import day
    from client.sources.platform_tables import read_tables, require_items, require_usable

    file = load(path)
    tables = read_tables(file)
    require_usable(tables, where=str(file.path))
    require_items(tables, where=str(file.path))
    shown = preview(file, settings, tables)
    forecast = _forecast(file, settings, tables)
    report = {
        "platform": file.name,
        "users": {"declared": file.users, "with_interactions": tables.users, "evaluated": shown.evaluated},
        "items": tables.items,
        "keys": _keys(tables),
        "interactions": len(tables.interactions.item),
        "positive": int(tables.interactions.positive.sum()),
        "weights_differ": _weights_differ(tables),
        "sources": [
            {
                "source": source.source,
                "kind": source.kind,
                "read": source.read,
                "kept": source.kept,
                "dropped": {drop.reason: drop.rows for drop in source.dropped},
                "changed": {f"{one.column}: {one.how}": one.cells for one in source.changed},
                "times": None if source.times is None else {"first": day(source.times[0]), "last": day(source.times[1])},
                "events": [asdict(event) for event in source.events],
            }
            for source in tables.reports
        ],
        "examples": list(shown.users),
        "item_example": shown.item,
        "texts_cut": {name: {"cut": cut, "of": of} for name, (cut, of) in shown.cut.items()},
        "forecast": forecast,
        "privacy_warnings": list(file.privacy_warnings),
        "warnings": [
            *file.warnings,
            *_alone(file, tables.users, forecast),
            *(f"source '{one.source}': {text}" for one in tables.reports for text in (*one.warnings, *_unread_time(file, one))),
        ],
    }
    return report, set(hashes_of(tables).tolist())


def _alone(file: PlatformFile, users: int, forecast: dict[str, Any]) -> list[str]:
    """What a person should know who sees how many users there are, or how little one platform by itself can show."""
    from shared.privacy.plan import short_number

    found = []
    if not file.users / _WIDE <= users <= file.users * _WIDE:
        found.append(
            f"users = {file.users:,} is declared, and {users:,} have interactions: noise, and what delta promises, are planned "
            "for the declared number, so declare about how many there are"
        )
    if forecast["possible"] and forecast["signal_to_noise"] != "inf" and forecast["signal_to_noise"] < 1:
        most = short_number(forecast["signal_to_noise"])
        found.append(
            f"what this platform can show is at most {most} of the noise: a run in which all platforms "
            "together do not exceed it is refused; more users, a larger budget or fewer items (preferences.items) help"
        )
    return found


def _unread_time(file: PlatformFile, read: SourceReport) -> list[str]:
    """A line on a column that looks like the time of events, where a source of them has none."""
    from client.setup.unread_times import unread_time

    source = file.sources.get(read.source)
    hint = unread_time(source) if source is not None and read.times is None else ""
    return [hint] if hint else []


def recommend_command(
    platform: Annotated[Path, typer.Option(help="The platform file, or its folder.")],
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
    console = Console(emoji=False)
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
    platform: Annotated[Path, typer.Argument(help="The platform file, or its folder.")],
    model: ModelOption = None,
    trust: TrustOption = None,
    texts: TextsOption = False,
    seed: Annotated[int, typer.Option(help="Which items are held out where there are no times: the run's seed.")] = 0,
    k: Annotated[str, typer.Option("--k", help="Lengths of the lists that are judged.")] = "5,10,20",
    by: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE.COLUMN of profiles or items: a segment for each of its values; may be repeated."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A .svg or .png file for the diagram of how calibrated probabilities are.")
    ] = None,
    per_user: Annotated[Path | None, typer.Option(help="A Parquet file for what every model makes of every user.")] = None,
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
    console = Console(emoji=False)
    console.print(table)
    for one in further:
        console.print(one)
    for line in found.lines:
        console.print(escape(line), soft_wrap=True)
    console.print("[dim]exact and private: nothing of this was sent, and it should not leave the platform[/]")


def _weights_differ(tables: Any) -> bool:
    """Whether events or values give some liked items another weight than others."""
    liked = tables.interactions.weight[tables.interactions.positive]
    return bool(len(liked)) and bool(liked.min() != liked.max())


def _keys(tables: Any) -> dict[str, int]:
    """Items with a public key that can be read, and those that share it with another."""
    from collections import Counter

    found = Counter(key for key in tables.item_keys if key)
    return {"items": found.total(), "shared": sum(times for times in found.values() if times > 1)}


def _forecast(file: Any, settings: Settings, tables: Any) -> dict[str, Any]:
    """What the planned run would spend and how loud its update would be; a refusal is an answer too."""
    from client.run.quoting import quote_run
    from shared.ledger.reading import read_ledger

    deployed = file.federation.coordinator is not None
    try:
        if deployed:
            # What a deployed platform refuses before it plans anything.
            file.require_catalogue()
            file.require_delta()
        spent = [entry.release for entry in read_ledger(file.ledger).entries] if deployed and file.ledger.exists() else []
        found = quote_run(file, settings, tables, budget=file.privacy.epsilon, spent=spent, simulation=not deployed)
    except PrivacyError as error:
        return {"possible": False, "why": error.found}
    plan = found.plan
    return {
        "possible": True,
        "rounds": settings.rounds_each,
        "steps": settings.steps,
        "sample_rate": settings.training.rate(file.users) if settings.trains else 0.0,
        "batch": settings.training.batch([file.users]) if settings.trains else 0.0,
        "epsilon": found.epsilon if plan.private else "inf",
        "left": found.share.left if plan.private else "inf",
        "budget": plan.budget if plan.private else "inf",
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "preference_noise": plan.preference_noise,
        "taste_noise": plan.taste_noise,
        "signal_to_noise": plan.signal_to_noise if plan.private else "inf",
        "group_size": found.group_size,
        "accountant": str(plan.accountant),
    }


def _show(report: dict[str, Any]) -> None:
    from shared.privacy.plan import noise_words, short_number

    console = Console(emoji=False)
    users = report["users"]
    console.print(
        f"[bold]{report['platform']}[/]: {users['with_interactions']:,} users with interactions (declared {users['declared']:,}, "
        f"evaluated {users['evaluated']:,}), {report['items']:,} items, {report['interactions']:,} interactions of which "
        f"{report['positive']:,} positive"
    )
    keys = report["keys"]
    if keys["items"]:
        twins = f"; {keys['shared']:,} share theirs with another item here, and count as one" if keys["shared"] else ""
        console.print(f"[bold]keys:[/] {keys['items']:,} of {report['items']:,} items have one that can be read{twins}")
    else:
        console.print("[bold]keys:[/] none are declared: items are in common only with platforms of the very same catalogue")
    table = terminal_table("sources")
    for name in ("source", "kind", "rows read", "kept", "left out, and why", "cells made alike"):
        table.add_column(name, justify="right" if name in ("rows read", "kept") else "left", overflow="fold")
    for source in report["sources"]:
        why = "\n".join(f"{rows:,} {escape(reason)}" for reason, rows in source["dropped"].items()) or "-"
        alike = "\n".join(f"{cells:,} {escape(how)}" for how, cells in source["changed"].items()) or "-"
        table.add_row(escape(source["source"]), source["kind"], f"{source['read']:,}", f"{source['kept']:,}", why, alike)
    console.print(table)
    _show_order(console, report["sources"])
    if report["weights_differ"]:
        console.print(
            "[bold]weights differ:[/] what has one above 0 is liked, and counts as one like in all that is released or trained; "
            "in the history that this platform's own and fused models read it counts by its weight where that predicts its users "
            "better (`fedfuse evaluate` says what was chosen)"
        )
    cut = [f"{escape(name)} {one['cut']:,} of {one['of']:,}" for name, one in report["texts_cut"].items() if one["cut"]]
    if cut:
        more = "tokens in the source, or model.user_tokens and model.item_tokens of the run, raise the limit"
        console.print(f"[bold]texts that are cut[/] (of the first that there are): {', '.join(cut)}; {more}")
    console.print(f"[bold]an item as text:[/] {escape(report['item_example'])}")
    for example in report["examples"]:
        console.print(f"[bold]user {escape(str(example['user']))} as text:[/] {escape(example['text'])}")
        held = example["held_out"]
        console.print("  held out: nothing, of one liked item" if held is None else f"  held out: {escape(held)}")
    forecast = report["forecast"]
    if not forecast["possible"]:
        console.print(f"[bold red]the planned run would be refused:[/] {escape(forecast['why'])}")
    elif forecast["epsilon"] == "inf":
        console.print("[bold red]PRIVACY IS OFF (epsilon = inf): no noise would be added, and nothing is promised to anyone.[/]")
    else:
        batch = f"{forecast['batch']:,.0f} users expected in each, sample rate {forecast['sample_rate']:.3g}"
        what = [f"{forecast['rounds']} rounds ({forecast['steps']} private steps, {batch})"] if forecast["steps"] else []
        what += ["a taste map"] if forecast["taste_noise"] else []
        what += ["sums of what users like together"] if forecast["preference_noise"] else []
        noise = noise_words(forecast["noise_multiplier"], forecast["preference_noise"], forecast["taste_noise"])
        spent = f"epsilon {short_number(forecast['epsilon'])} of the {forecast['left']:.3g} left of {forecast['budget']:g}"
        console.print(
            f"[bold]forecast[/] for {' and '.join(what)}: {spent} at delta {forecast['delta']:g}; noise multiplier {noise}, "
            f"group size {forecast['group_size']}, signal to noise at most {short_number(forecast['signal_to_noise'], 1)} "
            f"({forecast['accountant']})"
        )
    for warning in report["warnings"]:
        if warning == forecast.get("why"):
            continue
        loud = warning in report["privacy_warnings"]
        console.print(f"[bold {'red' if loud else 'yellow'}]warning:[/] {escape(warning)}")


def _show_order(console: Any, sources: Sequence[dict[str, Any]]) -> None:
    """Whether times are used and what they span, and what every event counts for."""
    timed = any(source["times"] is not None for source in sources if source["kind"] == "interactions")
    for source in sources:
        name = escape(source["source"])
        if source["times"] is not None:
            console.print(f"[bold]times of {name}:[/] used, {source['times']['first']} to {source['times']['last']}")
        elif source["kind"] in ("interactions", "reviews"):
            cure = "where a column has times, name it: columns = { ..., time = NAME }"
            drawn = (
                "texts are in the order of reading" if source["kind"] == "reviews" else "what is held out is drawn by the seed"
            )
            order = "rows are before all that have one" if timed else drawn
            console.print(f"[bold]times of {name}:[/] none: {order}; {cure}")
        events = source["events"]
        if events:
            shown = (
                f"{escape(one['event'])} {one['rows']:,} x {'no weight' if one['weight'] is None else format(one['weight'], 'g')}"
                for one in events[:_EVENTS]
            )
            more = f"; {len(events) - _EVENTS:,} more" if len(events) > _EVENTS else ""
            console.print(f"[bold]events of {name}:[/] {'; '.join(shown)}{more}")
