"""`fedfuse facts`: what a platform's graph says of its items, for other platforms to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def facts_command(
    platform: Annotated[Path, typer.Argument(help="The platform file, or its folder.", readable=False)],
    out: Annotated[Path, typer.Option(help="File of JSON lines to write; it is public.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write what the graph says of the items, under public keys, into a file that other platforms name under `elsewhere`.

    Public tables alone are opened: items and triples, and no user's row. The platform file says `publish = true` in the source of
    kind "knowledge", and nothing is sent anywhere.

    \b
    fedfuse facts films.toml --out films.facts.jsonl
    then, in another platform's file:  [sources.graph]  kind = "knowledge"  elsewhere = ["films.facts.jsonl"]
    """
    from client.config.deployment_folder import platform_file_in
    from client.config.platform_file import load
    from client.sources.entity_facts import write_facts
    from client.sources.platform_tables import read_public_facts

    found = read_public_facts(load(platform_file_in(platform)))
    write_facts(out, found)
    keys = {key for item in found.items for key in (*item.keys, *(key for fact in item.facts for key in fact.keys))}
    made = {"out": str(out), "items": len(found.items), "facts": sum(len(item.facts) for item in found.items), "keys": len(keys)}
    if as_json:
        typer.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{made['facts']:,} facts of {made['items']:,} items under {made['keys']:,} public keys in {out}")
