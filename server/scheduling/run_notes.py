"""What is noted in a run's folder from outside the run: that an operator ended it, or why whoever watched it gave up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from shared.base.atomic_files import write_whole
from shared.base.errors import ExitCode, FedfuseError

ABORTED, GIVEN_UP = "aborted.json", "given-up.json"


class RunAborted(FedfuseError):
    """An operator ended the run."""

    exit_code = ExitCode.INTERRUPTED


def note_abort(folder: Path, *, by: str) -> None:
    """Have whoever watches the run end it, and start it no more.

    Raises:
        StorageError: it cannot be written.
    """
    _write(folder / ABORTED, {"by": by, "time": time.time()})


def require_wanted(folder: Path) -> None:
    """Return unless an operator has ended the run.

    Raises:
        RunAborted: one has.
    """
    by = aborted_by(folder)
    if by:
        raise RunAborted(
            f"run {folder.name} was aborted by {by}", where=str(folder), do=f"go on with it: fedfuse run --resume {folder.name}"
        )


def aborted_by(folder: Path) -> str:
    """The operator who ended the run; '' if none did."""
    return str(_read(folder / ABORTED).get("by", ""))


def note_failure(folder: Path, error: FedfuseError) -> None:
    """Leave why the run was given up, where it could not say so itself.

    Raises:
        StorageError: it cannot be written.
    """
    _write(folder / GIVEN_UP, {"why": str(error), "code": int(error.exit_code), "time": time.time()})


def failure_in(folder: Path) -> tuple[str, int] | None:
    """Why the run was given up, and the exit code; None if it was not."""
    values = _read(folder / GIVEN_UP)
    try:
        return str(values["why"]), int(values["code"])
    except (KeyError, TypeError, ValueError):
        return None


def clear_notes(folder: Path) -> None:
    """Forget both: the run is to go on."""
    for name in (ABORTED, GIVEN_UP):
        (folder / name).unlink(missing_ok=True)


def _write(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
