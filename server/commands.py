"""`fedfuse audit`, `pull` and `strategies`: what anyone may run who was given a run, a model, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.errors import ExitCode


def audit(
    run: Annotated[Path, typer.Argument(help="Run folder, with the platforms' ledgers in ledger/.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check every ledger's hash chain and recompute epsilon from its entries alone, with Opacus and with dp-accounting.

    Exit code 4 when anything does not hold.
    """
    from shared.audit import audit as look
    from shared.audit import render

    report = look(run)
    if as_json:
        typer.echo(report.to_json())
    else:
        Console().print(render(report))
    if not report.ok:
        raise typer.Exit(ExitCode.PRIVACY)


def pull(
    source: Annotated[str, typer.Argument(help="A published model: a run folder, a model folder, or any fsspec address.")],
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was pulled as JSON.")] = False,
) -> None:
    """Copy a published model after checking its manifest of hashes; what does not match never arrives."""
    from server.registry import pull as fetch

    model = fetch(source, out)
    if as_json:
        typer.echo(
            json.dumps(
                {"folder": str(model.folder), "files": {entry.name: entry.sha256 for entry in model.manifest.files}}, indent=2
            )
        )
    else:
        typer.echo(f"{len(model.manifest.files)} files, {model.manifest.size / 1024:,.0f} KiB, every hash right: {model.folder}")


def strategies(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the aggregation strategies: when to use each, what it trusts, what it sends."""
    from strategies import catalogue

    cards = catalogue()
    if as_json:
        typer.echo(
            json.dumps(
                [{"name": card.name, "when": card.when, "trusts": card.trusts, "sends": card.sends} for card in cards], indent=2
            )
        )
        return
    table = Table(title="strategies (--strategy NAME)")
    for name in ("name", "when to use it", "what it trusts", "what it sends"):
        table.add_column(name)
    for card in cards:
        table.add_row(escape(card.name), escape(card.when), escape(card.trusts), escape(card.sends))
    Console().print(table)
