"""Tables of edge cases in docstrings: a test names each row and checks it, and the docstring has these rows, word for word."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_ROW = re.compile(r"^\s*\|(.+)\|(.+)\|$", re.MULTILINE)


def rows_of(thing: Any) -> list[tuple[str, str]]:
    """The rows of a docstring's table: what is given, and what comes of it."""
    found = [(given.strip(), result.strip()) for given, result in _ROW.findall(inspect.getdoc(thing) or "")]
    return [row for row in found if row != ("given", "result") and set(row[0]) != {"-"}]


@contextmanager
def table(thing: Any) -> Iterator[Callable[[str, str], None]]:
    """Collects the rows that the body checks, and holds the docstring of `thing` to them.

    >>> def half(number: int) -> int:
    ...     '''| given | result |
    ...     |---|---|
    ...     | 0 | 0 |
    ...     '''
    ...     return number // 2
    >>> with table(half) as row:
    ...     row("0", "0")
    ...     assert half(0) == 0
    """
    checked: list[tuple[str, str]] = []
    yield lambda given, result: checked.append((given, result))
    assert rows_of(thing) == checked, f"the table in the docstring of {thing.__qualname__} is another"


def refused(kind: type[Exception], call: Callable[..., object], *args: Any, words: str = "", **how: Any) -> None:
    """It raises that error, with these words in it."""
    with pytest.raises(kind) as caught:
        call(*args, **how)
    assert words in str(caught.value), str(caught.value)
