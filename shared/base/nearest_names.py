"""Which of the known names somebody meant by one that is none."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """The known names that are spelled much alike, at most three, the nearest first; capital letters and space do not matter.

    >>> nearest_names("seperator", ["separator", "encoding"]), nearest_names("user", ["User ", "Item"]), nearest_names("q", ["a"])
    (['separator'], ['User '], [])
    """
    alike: dict[str, list[str]] = {}
    for one in known:
        alike.setdefault(one.strip().casefold(), []).append(one)
    close = get_close_matches(name.strip().casefold(), alike, n=3, cutoff=0.75)
    return [one for folded in close for one in alike[folded]][:3]


def meant(name: str, known: Iterable[str]) -> str:
    """The question whether somebody meant another name, behind a space, or '' where none is alike.

    >>> meant("seperator", ["separator", "encoding"]), meant("q", ["separator"])
    (" (did you mean 'separator'?)", '')
    """
    near = nearest_names(name, known)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
