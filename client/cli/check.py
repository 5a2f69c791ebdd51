"""`fedfuse check`: what a platform's sources give, before anything is trained, charged or sent."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from client.cli.check_words import show_check
from client.cli.planned_run import PlannedPlatform, forecast_run, refused_together, undecided
from shared.base.errors import ExitCode, FedfuseError
from shared.base.settings import Settings
from shared.base.terminal_table import terminal_console

if TYPE_CHECKING:
    from client.config.platform_file import PlatformFile
    from client.sources.tables import SourceReport, Tables

_FEW = 5
"""Users whose ids begin as a remark does, from which on such are ids."""
_WIDE = 2
"""By how much declared users may differ from those that there are, before it is said."""


def check(
    platform: Annotated[
        Path, typer.Argument(help="A platform file, its folder, or a world's folder with several.", readable=False)
    ],
    config: Annotated[Path | None, typer.Option(help="TOML file of the planned run's settings (a run.toml will do).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Read a platform's sources and show what they give: rows, fused examples, and the epsilon of the planned run.

    Of a world, every platform's, and how many items each two have in common. Nothing is trained, charged or sent. What is shown
    are the platforms' own rows: keep it there. Where the planned run is sure to be refused, the exit code says so: by a deployed
    platform's own file (its terms count where --config names the run's settings), by its budget, or, of a world, because what all
    of its platforms sum would be noise.
    """
    from client.config.deployment_folder import platform_files_in
    from shared.base.setting_overrides import settings_of

    settings = settings_of(config, [])
    reports: list[dict[str, Any]] = []
    items: dict[str, set[int]] = {}
    planned: list[PlannedPlatform] = []
    files = platform_files_in(platform)
    failed: list[tuple[Path, FedfuseError]] = []
    for file in files:
        try:
            report, hashes, brings = _checked(file, settings, planned=config is not None, alone=len(files) == 1)
        except FedfuseError as error:
            failed.append((file, error))
            continue
        reports.append(report)
        items[report["platform"]] = hashes
        planned += [brings] if brings is not None else []
        if not as_json:
            show_check(report)
            print()
    if failed:
        raise _all_of(failed)
    refused = refused_together(settings, planned)
    common = {f"{one}, {other}": len(items[one] & items[other]) for one, other in itertools.combinations(items, 2)}
    if as_json:
        together = {"platforms": reports, "items_in_common": common, "refused": refused or None}
        found = reports[0] if len(files) == 1 else together
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console = terminal_console()
        if common:
            shown = "; ".join(f"{escape(pair)} {count:,}" for pair, count in common.items())
            console.print(f"[bold]items in common:[/] {shown}")
        if refused:
            shown = f"[bold red]the planned run of these platforms would be refused:[/] {escape(refused)}"
            console.print(shown)
        console.print("[dim]nothing was trained, charged or sent[/]")
    if refused or not all(report["forecast"]["possible"] for report in reports):
        raise typer.Exit(ExitCode.PRIVACY)


def _all_of(failed: Sequence[tuple[Path, FedfuseError]]) -> FedfuseError:
    """One error of all platforms of a world that cannot be read, so that nobody has to mend them one after the other."""
    if len(failed) == 1:
        return failed[0][1]
    said = [f"{path.name}: {str(error).replace(chr(10), chr(10) + '  ')}" for path, error in failed]
    error = FedfuseError(f"{len(failed)} platforms cannot be used", quote="\n".join(said), do="mend each as it says")
    error.exit_code = failed[0][1].exit_code
    return error


def _checked(
    path: Path, settings: Settings, *, planned: bool, alone: bool
) -> tuple[dict[str, Any], set[int], PlannedPlatform | None]:
    """What is to be said of one platform, the hashes by which others find its items, and what it would bring to a run."""
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
    hashes = set(hashes_of(tables).tolist())
    forecast, brings = forecast_run(file, settings, tables, hashes=hashes, planned=planned)
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
            *_declared(file, tables.users),
            *undecided(file, settings, forecast, planned=planned, alone=alone),
            *_spelled_alike(file, tables),
            *_remarks(tables),
            *(f"source '{one.source}': {text}" for one in tables.reports for text in (*one.warnings, *_unread_time(file, one))),
        ],
    }
    return report, hashes, brings


def _declared(file: PlatformFile, users: int) -> list[str]:
    """What a person should know who declares far more or far fewer users than there are."""
    if file.users / _WIDE <= users <= file.users * _WIDE:
        return []
    return [
        f"users = {file.users:,} is declared, and {users:,} have interactions: noise, and what delta promises, are planned "
        "for the declared number, so declare about how many there are"
    ]


def _spelled_alike(file: PlatformFile, tables: Tables) -> list[str]:
    """How many users and items are others but for letters or leading zeros."""
    import polars as pl

    from client.sources.spellings import alike_ids

    found: list[str] = []
    for what, ids in (("users", tables.user_ids), ("items", tables.item_ids)):
        found += [
            f"{alike.count:,} of {len(ids):,} {what} differ from another in {alike.words()}; {alike.difference.cure}"
            for alike in alike_ids(pl.Series(ids, dtype=pl.String), file.ids)
        ]
    return found


def _remarks(tables: Tables) -> list[str]:
    """Users who are probably remarks of the program that wrote the export."""
    found = [user for user in tables.user_ids if user.startswith("#")]
    if not 0 < len(found) <= _FEW:
        return []
    cure = "if that is a remark of the export and no user, comment = '#' in the source leaves out all lines that begin so"
    return [f"{len(found)} of {tables.users:,} users are called as a remark begins, such as {found[0]!r}: {cure}"]


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
