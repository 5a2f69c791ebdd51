"""`fedfuse report`: what a run or a platform spent, what left, and whether that holds, on one page for everybody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.audit import AsJson, Coordinator, Trust, gather_ledgers, leave_unjudged
from shared.base.errors import FedfuseError

if TYPE_CHECKING:
    from server.report.report_model import RunReport


def report_command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A run's folder, a platform's folder or a ledger; further ones add ledgers, as to `fedfuse audit`.",
            readable=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, the JSON and the YAML; default: report/ in PATH.")
    ] = None,
    head: Annotated[list[str] | None, typer.Option(help="Head that somebody wrote down: HASH or NAME=HASH.")] = None,
    receipts: Annotated[list[Path] | None, typer.Option(help="The coordinator's receipts.jsonl of a run.")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Folder of a model that was pulled.")] = None,
    trust: Trust = None,
    coordinator: Coordinator = None,
    attack: Annotated[
        Path | None, typer.Option(help="What `fedfuse audit attack --json` printed; default: the run's own.")
    ] = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Write nothing: serve the page on 127.0.0.1 until Ctrl-C, following the run."),
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --live; 0: any that is free.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write one page that says what was spent, what left and whether the records hold; JSON and a registry entry beside it.

    \b
    fedfuse report runs/first                                    a simulation
    fedfuse report shop --receipts receipts.jsonl --model model  a platform, against the coordinator's
    fedfuse report coordinator/runs/spring shop.jsonl            a deployed run, with the platforms' ledgers
    fedfuse report runs/first --live                             while it runs, in a browser of this machine

    The page needs no network and no script. Exit code 0: sound. 1: unsound. 2: nobody can tell.
    """
    from server.report.live import LiveReport
    from server.report.written import write_report

    def made() -> RunReport:
        return _made(paths, head or [], receipts or [], model or [], trust or [], coordinator or [], attack)

    try:
        if live:
            with LiveReport(made, port=port) as served:
                typer.echo(f"{served.url}  (Ctrl-C ends it)")
                served.serve_forever()
        report = made()
        place = paths[0] / "report" if paths[0].is_dir() else paths[0].with_name(f"{paths[0].stem}-report")
        written = write_report(report, out or place)
    except (FedfuseError, OSError) as error:
        leave_unjudged(error, as_json=as_json)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        typer.echo(f"{report.verdict.verdict}: {report.verdict.headline}")
        if report.verdict.standing != "promised":
            typer.echo(f"  ! {report.promise.statement}")
        for reason in report.verdict.reasons:
            typer.echo(f"  - {reason}")
        for path in written:
            typer.echo(f"{path}")
    raise typer.Exit(report.verdict.exit_code)


def _made(
    paths: list[Path],
    heads: list[str],
    receipts: list[Path],
    models: list[Path],
    trust: list[Path],
    coordinators: list[Path],
    attack: Path | None,
) -> RunReport:
    from server.registry.publication import MODEL
    from server.registry.run_facts import FACTS
    from server.report.collect import ReportMaterial, collect_report
    from server.report.subject import open_subject, read_subject
    from shared.base.errors import InputError
    from shared.ledger.receipts import RECEIPTS

    subject = open_subject(paths[0])
    ledgers_in = paths if subject.has_ledgers else paths[1:]
    if not subject.has_ledgers:  # the coordinator's own run: what it keeps is evidence for the ledgers that are given
        own, published = subject.place / RECEIPTS, subject.place / MODEL
        receipts = [*([own] if own.exists() else []), *receipts]
        models = [*([published] if (published / FACTS).exists() else []), *models]
    if attack is not None and not attack.is_file():
        raise InputError("there is no such file", where=str(attack), do="name what `fedfuse audit attack --json` printed")
    ledgers, evidence = gather_ledgers(ledgers_in, heads, receipts, models, trust, coordinators)
    files = read_subject(subject, attack=attack)
    return collect_report(ReportMaterial(subject=subject, files=files, ledgers=ledgers, evidence=evidence))
