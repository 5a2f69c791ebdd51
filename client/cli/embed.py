"""`fedfuse embed`: pictures and sounds as vectors, by a local encoder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

_NAMED = 20
"""Files that could not be read that are named on a terminal."""


def embed_command(
    files: Annotated[list[Path], typer.Argument(help="Pictures or sounds, or folders of them.")],
    encoder: Annotated[
        str,
        typer.Option(
            help="Folder of a vision or audio encoder that transformers loads, or its hub name (then it is downloaded)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A .parquet file of item and vector.")] = Path("vectors.parquet"),
    ids: Annotated[
        Path | None,
        typer.Option(help="CSV with columns file and item; by default a file's name without its ending is the item's id."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Files at once.")] = 16,
    seconds: Annotated[float, typer.Option(help="Of a sound, from its beginning, that are heard.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Embed pictures or sounds for a source of vectors; what was interrupted goes on where it was.

    Broken files are left out and named. Several files of one item give the mean of their vectors.

    \b
    fedfuse embed pictures/ --encoder models/dinov2-small --out images.parquet
    fedfuse embed songs/ --encoder models/clap --ids songs.csv --out songs.parquet
    then, in the platform file:  [sources.images]  kind = "vectors"  path = "images.parquet"
    """
    from client.cli.progress_lines import Told
    from client.embedding.embed_files import embed_files
    from client.embedding.media_encoder import IMAGE, MediaEncoder
    from client.embedding.media_files import IMAGES, SOUNDS, find_media

    with Told(()) as told:
        told.tell("loading the encoder")
        loaded = MediaEncoder(encoder, seconds=seconds)
        found = find_media(files, endings=IMAGES if loaded.kind == IMAGE else SOUNDS, ids=ids)
        made = embed_files(found, loaded, out=out, batch=batch, progress=told.progress)
    if as_json:
        typer.echo(json.dumps({"out": str(out), **asdict(made)}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{made.items:,} items of {made.files:,} files in {out}: vectors of {made.width} numbers, of length 1")
    for what, several in (("could not be read", made.broken), ("left out", made.passed)):
        if several:
            typer.echo(f"{len(several):,} files {what}:", err=True)
        for path, why in list(several.items())[:_NAMED]:
            typer.echo(f"  {path}: {why}", err=True)
        if len(several) > _NAMED:
            typer.echo(f"  and {len(several) - _NAMED:,} more (--json names all)", err=True)
