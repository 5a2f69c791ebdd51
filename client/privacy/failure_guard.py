"""What becomes of a computation on rows that fails: in a deployment its result is that of no rows.

A refusal, or a crash, that one user's rows bring about tells of that user. So whatever is computed from rows after a run was
joined passes a guard: where it fails (a value that is not a number, memory that does not suffice, a fault of the program), the
platform goes on without the users on whom it failed, releases the rest with all of the noise, and logs the failure for its own
operator. A simulation promises nothing to anybody, and there a fault is to be seen: it raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.privacy.bounded_sum import BoundedSum

log = logging.getLogger("fedfuse.worker")
T = TypeVar("T")
U = TypeVar("U")


class Guard(Protocol):
    """Runs a computation on rows."""

    def __call__(self, compute: Callable[[], T], otherwise: Callable[[], U], *, what: str) -> T | U:
        """The result of `compute`, or of `otherwise` where that fails."""


def raising(compute: Callable[[], T], otherwise: Callable[[], U], *, what: str) -> T | U:
    """Let it fail: for simulations, benchmarks, and what stays on the platform."""
    return compute()


def by_parts(
    compute: Callable[[NDArray[np.int64]], BoundedSum],
    rows: NDArray[np.int64],
    *,
    guard: Guard,
    empty: Callable[[], BoundedSum],
    what: str,
) -> BoundedSum:
    """The sum over rows of users, without those on which it fails.

    Where it fails it is tried on either half, down to a single user, who then counts for nothing: were everybody left out, one
    user whose rows make it fail would move the sum by the number of users.

    Args:
        compute: The sum over some of the rows.
        rows: int64 (n, ...). One row a user.
        empty: The sum over nobody.
    """
    found = guard(lambda: compute(rows), lambda: None, what=what)
    if found is not None:
        return found
    if len(rows) < 2:
        return empty()
    half = len(rows) // 2
    first, second = (by_parts(compute, part, guard=guard, empty=empty, what=what) for part in (rows[:half], rows[half:]))
    return first.plus(second)


class Silent:
    """Go on as if nobody were there, and remember that it happened for the platform's operator."""

    def __init__(self) -> None:
        self.failures = 0
        self.last: Exception | None = None

    def __call__(self, compute: Callable[[], T], otherwise: Callable[[], U], *, what: str) -> T | U:
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
