"""Files that are whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from shared.errors import StorageError


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path`; whoever reads meets the old bytes or the new ones, never a part.

    Raises:
        StorageError: it cannot be written (disk full, no permission); what was at `path` is still there.
    """
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot be written: {error.strerror or error}", where=str(path), do="check space and rights"
        ) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive a power cut; systems that cannot sync a folder need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
