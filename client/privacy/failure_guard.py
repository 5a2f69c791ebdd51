"""What becomes of a computation on rows that fails: in a deployment its result is that of no rows.

A refusal, or a crash, that one user's rows bring about tells of that user. So whatever is computed from rows after a run was
joined passes a guard: where it fails (a value that is not a number, memory that does not suffice, a fault of the program), the
platform goes on with what nobody would have contributed, releases it with all of the noise, and its own operator is told. A
simulation promises nothing to anybody, and there a fault is to be seen: it raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

log = logging.getLogger("fedfuse.worker")
T = TypeVar("T")


class Guard(Protocol):
    """Runs a computation on rows."""

    def __call__(self, compute: Callable[[], T], otherwise: Callable[[], T], *, what: str) -> T:
        """The result of `compute`, or of `otherwise` where that fails."""


def raising(compute: Callable[[], T], otherwise: Callable[[], T], *, what: str) -> T:
    """Let it fail: for simulations, benchmarks, and what stays on the platform."""
    return compute()


class Silent:
    """Go on as if nobody were there, and remember that it happened for the platform's operator."""

    def __init__(self) -> None:
        self.failures = 0
        self.last: Exception | None = None

    def __call__(self, compute: Callable[[], T], otherwise: Callable[[], T], *, what: str) -> T:
        """The result of `compute`, or of `otherwise` where that fails."""
        try:
            return compute()
        except Exception as error:
            self.failures, self.last = self.failures + 1, error
            log.exception(
                "%s failed; this platform contributes nothing to it but noise, and the coordinator cannot tell",
                what,
                extra={"event": "contribution_failed"},
            )
            return otherwise()
