"""`fedfuse check`: what a platform's sources give, before anything is trained, charged or sent."""

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

from client.cli.check_words import show_check
from shared.base.errors import ExitCode, FedfuseError, PrivacyError
from shared.base.settings import Settings

if TYPE_CHECKING:
    from client.config.platform_file import PlatformFile
    from client.sources.tables import SourceReport, Tables

_WIDE = 2
"""By how much declared users may differ from those that there are, before it is said."""


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
            show_check(report)
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
            *_in_other_letters(file, tables),
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


def _in_other_letters(file: PlatformFile, tables: Tables) -> list[str]:
    """How many users and items are others in capital or small letters, or in other forms of characters."""
    import polars as pl

    from client.sources.spellings import alike_ids

    found = []
    for what, ids in (("users", tables.user_ids), ("items", tables.item_ids)):
        alike = None if file.ids.folded else alike_ids(pl.Series(ids, dtype=pl.String))
        if alike is not None:
            found.append(f"{alike.count:,} of {len(ids):,} {what} differ from another in {alike.words()}; {alike.cure}")
    return found


def _unread_time(file: PlatformFile, read: SourceReport) -> list[str]:
    """A line on a column that looks like the time of events, where a source of them has none."""
    from client.setup.unread_times import unread_time

    source = file.sources.get(read.source)
    hint = unread_time(source) if source is not None and read.times is None else ""
    return [hint] if hint else []


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
