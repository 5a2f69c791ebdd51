"""Forces plain autograd, uncompiled, so that the start-up gradient check is independent of what it checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_ASKED = ContextVar("plainly", default=False)


@contextmanager
def plainly() -> Iterator[None]:
    """Within it no derivative is one that we wrote out, and nothing is compiled; slower, and the same values."""
    before = _ASKED.set(True)
    try:
        yield
    finally:
        _ASKED.reset(before)


def asked() -> bool:
    """Whether this is within `plainly`."""
    # Compiled code never is, and the compiler need not know what a context is.
    return not torch.compiler.is_compiling() and _ASKED.get()
