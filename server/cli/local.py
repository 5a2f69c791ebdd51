"""`fedfuse pull`, `models`, `publish` and `strategies`: what one runs on a run, a registry, or nothing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from server.cli.operators import As, publisher
from shared.base.terminal_table import terminal_console, terminal_table

if TYPE_CHECKING:
    from shared.registry.manifest import Manifest


def pull_command(
    source: Annotated[str, typer.Argument(help="A registry or one published model: a folder, s3://, gs://, https:// ...")],
    out: Annotated[Path, typer.Option(help="A folder for the model: new, or one that an earlier pull made.")],
    trust: Annotated[
        list[Path] | None, typer.Option(help="Public key of who may have signed it; may be repeated while keys change.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take it whoever published it; anybody may have forged it.")
    ] = False,
    model: Annotated[str, typer.Option(help="Number of a version, or a model's name; default: the newest.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was pulled as JSON.")] = False,
) -> None:
    """Fetch a published model after checking its signature, every hash and its backbone; what does not match never arrives.

    \b
    fedfuse pull s3://models/ours --trust key.pub --out model        the newest version; again: bring it up to date
    fedfuse pull runs/first --unsigned --out model                   a run's own copy, on your own disk
    """
    from server.registry.pull import pull_model
    from shared.registry.signing import load_trusted

    keys = [load_trusted(path) for path in trust or []]
    pulled = pull_model(source, out, trusted=keys, unsigned=unsigned, model=model)
    manifest = pulled.manifest
    if as_json:
        shown = {
            "folder": str(pulled.folder),
            "version": manifest.version,
            "name": manifest.origin.name,
            "signer": pulled.signer,
            "fresh": pulled.fresh,
            "backbone_here": pulled.backbone,
            "unpromised": list(pulled.unpromised),
            "files": {entry.name: entry.sha256 for entry in manifest.files},
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    proof = f"signed by {pulled.signer[:16]}" if pulled.signer else "no signature was looked at"
    size = f"{len(manifest.files)} files, {manifest.size / 1024:,.0f} KiB"
    state = "" if pulled.fresh else "; it was here already"
    typer.echo(f"{_title(manifest)}: {size}, every hash right, {proof}{state}: {out}")
    for reason in pulled.unpromised:
        typer.echo(f"NOTHING IS PROMISED to the users behind it: {reason}")
    if not pulled.backbone and manifest.origin.adapter_sha256:
        typer.echo(
            f"its backbone {manifest.origin.backbone!r} could not be checked here: get it, its weights' SHA-256 is in {out}"
        )


def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    registry: Annotated[str, typer.Argument(help="Where models are published: a folder, s3://bucket/path, gs://...")],
    key: Annotated[Path, typer.Option(help="The coordinator's private signing key.")],
    name: Annotated[str, typer.Option(help="What the model is called; default: the run's name.")] = "",
    trust: Annotated[list[Path] | None, typer.Option(help="Public key that signed earlier versions, if it was another.")] = None,
    as_simulation: Annotated[
        bool,
        typer.Option(
            "--as-simulation", help="Publish the model of a simulation; the first line of its card says that it promises nothing."
        ),
    ] = False,
    act_as: As = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was published as JSON.")] = False,
) -> None:
    """Publish the model of a run as the next version of a registry, signed; readers get all of it or nothing.

    What a coordinator's folder holds is published by an operator who may, and their log says so.
    Refused where noise came from a seed or figures are exact, as in every simulation, unless --as-simulation says so.
    """
    from server.operators.rights import Verb
    from server.registry.published_note import note_published
    from server.registry.registry import Registry
    from server.registry.store import open_store
    from shared.registry.signing import load_signer, load_trusted

    acting = publisher(run, key, act_as)
    signer = load_signer(key)
    trusted = [signer.public, *(load_trusted(path) for path in trust or [])]

    def record(of: str) -> None:
        if acting is not None:
            acting.record(Verb.PUBLISH, of, {"registry": registry, "name": name})

    store = Registry(open_store(registry), trusted)
    manifest = store.publish(run, signer, name=name, as_simulation=as_simulation, record=record)
    if acting is not None:
        note_published(run, registry, manifest)
    if as_json:
        typer.echo(json.dumps({"version": manifest.version, "name": manifest.origin.name, "sha256": manifest.sha256}, indent=2))
    else:
        typer.echo(f"{_title(manifest)} is published: {manifest.size / 1024:,.0f} KiB, signed by {manifest.signer[:16]}")


def models(
    registry: Annotated[str, typer.Argument(help="A registry: a folder, s3://, gs://, https:// ...")],
    trust: Annotated[list[Path] | None, typer.Option(help="Public key of who may have signed; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the versions of a registry, newest first. With --trust, what no trusted key vouches for is an error."""
    from server.registry.registry import Registry
    from server.registry.store import open_store
    from shared.registry.signing import load_trusted

    keys = [load_trusted(path) for path in trust or []]
    versions = list(Registry(open_store(registry), keys).versions())
    if as_json:
        shown = [
            {
                "version": manifest.version,
                "sha256": manifest.sha256,
                "signer": manifest.signer,
                "bytes": manifest.size,
                **manifest.origin.model_dump(mode="json"),
            }
            for manifest in versions
        ]
        typer.echo(json.dumps({"checked": bool(keys), "versions": shown}, indent=2))
        return
    if not versions:
        typer.echo(f"no model is published in {registry}")
        return
    table = terminal_table("models" if keys else "models (no signature was looked at: name a key with --trust)")
    for column in ("version", "name", "trained", "strategy", "rounds", "platforms", "KiB", "signed by"):
        table.add_column(column, justify="right" if column in ("version", "rounds", "KiB") else "left", overflow="fold")
    for manifest in versions:
        origin = manifest.origin
        names = ", ".join(origin.platforms)
        table.add_row(
            str(manifest.version),
            origin.name,
            origin.created,
            origin.strategy,
            str(origin.rounds),
            names if len(names) <= 40 else f"{len(origin.platforms)} platforms",
            f"{manifest.size / 1024:,.0f}",
            manifest.signer[:16] or "nobody",
        )
    terminal_console().print(table)


def _title(manifest: Manifest) -> str:
    return (
        f"version {manifest.version} ({manifest.origin.name})" if manifest.version else f"the model of run {manifest.origin.run}"
    )


def settings_command(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List every setting of a run: default, what it may be, what it is for. `--set KEY=VALUE` and a TOML file change it."""
    from shared.base.allowed_values import allowed_words
    from shared.base.settings import Settings, flatten, setting_fields

    defaults = flatten(Settings())
    fields = setting_fields()
    if as_json:
        listed = {
            key: {"default": defaults[key], "allowed": allowed_words(field).replace("`", ""), "for": field.description or ""}
            for key, field in fields.items()
        }
        typer.echo(json.dumps(listed, indent=2))
        return
    table = terminal_table()
    for name in ("setting", "default", "may be", "for"):
        table.add_column(name)
    for key, field in fields.items():
        default, allowed = defaults[key], allowed_words(field).replace("`", "")
        shown = default if isinstance(default, str) else json.dumps(default)
        table.add_row(key, escape(shown) or "(each platform's own)", escape(allowed), escape(field.description or ""))
    terminal_console().print(table)


def strategies(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the parts of a strategy: when to use each, what it trusts, what it sends, and whether the secure sum carries it."""
    from strategies.composition import strategy_cards, under_secure_sum
    from strategies.strategy_card import Role

    cards = strategy_cards()
    if as_json:
        shown = [
            {
                "name": card.name,
                "role": card.role.value,
                "when": card.when,
                "trusts": card.trusts,
                "sends": card.sends,
                "secure_sum": under_secure_sum(card),
            }
            for card in cards
        ]
        typer.echo(json.dumps(shown, indent=2))
        return
    titles = {
        Role.UNTRAINED: "without training",
        Role.UPDATES: "what is trained and sent",
        Role.COMBINING: "how updates are combined, instead of by their mean",
        Role.OPTIMIZER: "how the result is applied, instead of as it is",
        Role.AFTERWARDS: "after the last round",
    }
    for role, title in titles.items():
        table = terminal_table(title)
        table.add_column("name")
        table.add_column("use it for")
        table.add_column("secure sum")
        for card in cards:
            if card.role is role:
                table.add_row(escape(card.name), escape(card.text), "yes" if under_secure_sum(card) else "no")
        if table.row_count:
            terminal_console().print(table)
    typer.echo("Join one of each kind with '+': --strategy ffa+median. A combiner or an optimizer alone acts on fedavg.")
