"""Logging as it was: what a command configures of it ends with the command."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = ("fedfuse", "flwr", "client", "server", "shared")


@contextmanager
def kept_logging() -> Iterator[None]:
    """Give back the root's level and handlers, and the levels of the loggers that Fedfuse sets, in the end.

    >>> with kept_logging():
    ...     logging.getLogger("fedfuse").setLevel(logging.CRITICAL)
    >>> logging.getLogger("fedfuse").level == logging.CRITICAL
    False
    """
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in _NAMES}
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
