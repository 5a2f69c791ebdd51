"""Progress, in words for a person."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""What is being done, how many are done, of how many."""


def counted(progress: Progress | None, what: str, total: int) -> Callable[[int], None]:
    """What takes how many more are done, adds them up, and tells how far it is; it tells nobody where `progress` is None.

    >>> advance = counted(lambda *told: print(*told), "reading", 5)
    >>> advance(2), advance(3)
    reading 2 5
    reading 5 5
    (None, None)
    """
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(what, done, total)

    return advance
