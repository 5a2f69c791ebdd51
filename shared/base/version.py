"""The version of Fedfuse that this code is: in a bundle, the coordinator's; on a platform, the installed one."""

from __future__ import annotations

import re

VERSION = "0.2.0"
"""As in pyproject.toml; a test holds the two equal."""

_RELEASE = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:[.a-z0-9+-]{0,20})")


def release(text: str) -> tuple[int, int, int] | None:
    """The three numbers of a version, for comparing; None where the text is no version.

    >>> release("0.10.2") > release("0.9.30")
    True
    """
    match = _RELEASE.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))
