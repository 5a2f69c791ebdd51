"""A test double for the client of the coordinator's server."""

from __future__ import annotations

from typing import Self


class ControlDouble:
    """Used as `Control(coordinator)` is: called, and entered as a context manager, it is itself."""

    def __call__(self, coordinator: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""
