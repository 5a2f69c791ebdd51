"""What a command that reads and fits says meanwhile, and where it keeps things."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from rich.markup import escape

from shared.base.folder_owner import require_owner
from shared.base.terminal_table import terminal_console


def trunk_and_state(file: Any, model: Path | None) -> tuple[Path, Path | None]:
    """The folder of the trunk cache, and the platform's file of the run that made the model, if it ran in this place.

    Raises:
        InputError: this is root, and the state of a platform that is deployed belongs to its worker's user.
    """
    if (file.state / "identity.key").exists():
        require_owner(file.state)
    if model is None:
        return file.state / "trunk", None
    inside = model.resolve().parent / "state" / file.name
    state = next(iter(sorted((inside / "runs").glob("*.safetensors"))), None)
    return (inside if inside.is_dir() else file.state) / "trunk", state


class Told:
    """What is being done, on standard error: a line that changes on a terminal, else one line for each thing.

    Args:
        warnings: Said first.
    """

    def __init__(self, warnings: Iterable[str]) -> None:
        self._warnings = warnings
        self._console = terminal_console(stderr=True, highlight=False)
        self._status = self._console.status("")
        self._last = ""

    def __enter__(self) -> Self:
        for warning in self._warnings:
            self.say(f"warning: {warning}")
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def say(self, text: str) -> None:
        """What stays to be read."""
        self._console.print(escape(text), soft_wrap=True)

    def tell(self, what: str) -> None:
        """What begins now."""
        if self._console.is_terminal:
            self._status.update(escape(what))
        elif what != self._last:
            self.say(f"{what} ...")
        self._last = what

    def progress(self, what: str, done: int, total: int) -> None:
        """How far it is."""
        if self._console.is_terminal:
            self._status.update(escape(f"{what}: {done:,} of {total:,}"))
        else:
            self.tell(what)
