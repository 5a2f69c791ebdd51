"""The end of a run: its adapter becomes a published model, which appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from server.manifest import publish
from shared.durable import sync_folder
from shared.errors import StorageError
from shared.messages import Arrays
from shared.peft_export import export as plain_peft
from shared.settings import Settings

MODEL = "model"
Export = Callable[[Arrays, Settings, Path], None]
"""Writes the files of a model into a folder."""


def publish_adapter(adapter: Arrays, settings: Settings, out: Path, *, export: Export | None = None) -> Path:
    """Put the model of a finished run in `out/model`, with its manifest, in place of an older one.

    Raises:
        StorageError: it cannot be written; an older one is still there.
    """
    target, draft = out / MODEL, None
    try:
        draft = Path(tempfile.mkdtemp(dir=out, prefix=f".{MODEL}."))
        fresh, old = draft / "fresh", draft / "old"
        fresh.mkdir()
        (export or plain_peft)(adapter, settings, fresh)
        publish(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        sync_folder(out)
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(target), do="check space and rights"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target
