"""torch.compile with its cost in sight: how many graphs there are, and what each took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("fedfuse.compile")
MOST_GRAPHS = 8
"""Graphs of one function; a call with a further shape runs as it is, so that no stream of shapes compiles for ever."""

P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function that is compiled for each set of tensor shapes that it meets, up to `MOST_GRAPHS`.

    Args:
        function: Takes tensors, and containers and dataclasses of tensors.

    `graphs` and `seconds` say what was compiled so far. The first call of a shape compiles the way forward; the way back
    is compiled when it is first taken.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._plain = function
        self._compiled: Callable[P, R] = torch.compile(function, dynamic=False)
        self._shapes: set[object] = set()
        self.seconds = 0.0

    @property
    def graphs(self) -> int:
        """Shapes that were compiled for."""
        return len(self._shapes)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result."""
        shapes = _shapes_of((args, kwargs))
        if shapes in self._shapes:
            return self._compiled(*args, **kwargs)
        if len(self._shapes) == MOST_GRAPHS:
            return self._plain(*args, **kwargs)
        self._shapes.add(shapes)
        began = time.perf_counter()
        result = self._compiled(*args, **kwargs)
        taken = time.perf_counter() - began
        self.seconds += taken
        log.info("compiled graph %d of at most %d in %.1f s", len(self._shapes), MOST_GRAPHS, taken)
        return result


@cache
def compile_obstacle(device: torch.device) -> str:
    """What keeps torch.compile from working here, which needs a C compiler, and a folder to write to and to run from.

    Found out once a process, by compiling something small.

    Returns:
        Empty if nothing does.
    """
    try:
        torch.compile(_trial, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:  # whatever a compiler, a linker or a loader comes to
        said = " ".join(str(error).split()).partition(" Set TORCHDYNAMO_VERBOSE")[0]
        log.debug("torch.compile does not work", exc_info=True)
        return said[:300] or type(error).__name__
    return ""


def _trial(x: Tensor) -> Tensor:
    return (x * 2).sin()


def _shapes_of(value: Any) -> object:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((key, _shapes_of(part)) for key, part in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_shapes_of, value))
    return _shapes_of(vars(value)) if hasattr(value, "__dataclass_fields__") else None
