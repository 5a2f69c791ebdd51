"""Options of commands that recommend: a published model, whose signature is wanted, and whether texts are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.base.errors import InputError

if TYPE_CHECKING:
    from shared.registry.signing import PublicKey

ModelOption = Annotated[
    Path | None,
    typer.Option(help="Folder of a published model: RUN/model, or what `fedfuse pull` gave. Without it: the own model alone."),
]
TextsOption = Annotated[
    bool, typer.Option("--texts", help="Compare the items' texts by the embedded encoder, too: minutes, the first time.")
]

TrustOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        help="Public key of which the model must have a signature; may be repeated. Without it a changed file shows by its hash "
        "alone, which whoever changed it may have changed, too.",
    ),
]


def trusted_keys(model: Path | None, keys: Sequence[Path] | None) -> list[PublicKey]:
    """The public keys in these files.

    Raises:
        InputError: a file holds none, or there is no model that they could have signed.
    """
    from shared.registry.signing import load_trusted

    if keys and model is None:
        raise InputError("--trust needs a model", do="add --model, or leave --trust out")
    return [load_trusted(key) for key in keys or ()]
