"""Bytes to lines of text, each line decoded by itself where the encoding allows it."""

from __future__ import annotations

import re


def by_line(encoding: str) -> bool:
    """Whether a line end is a byte of its own, so that each line can be decoded by itself.

    >>> by_line("utf-8"), by_line("cp1252"), by_line("utf-16")
    (True, True, False)
    """
    return "\n".encode(encoding, "replace") == b"\n"


def lines_of(data: bytes, encoding: str) -> list[str]:
    """The lines, without their `\\n`; U+FFFD where bytes are no text.

    In an encoding that writes a line end as ASCII does, a line that is broken, or leaves a shift state behind, changes no
    other. UTF-16 and UTF-32 are decoded as a whole.

    >>> lines_of("a\\nü".encode("latin-1"), "latin-1"), lines_of(b"\\xff\\xfea\\0\\n\\0b\\0", "utf-16")
    (['a', 'ü'], ['a', 'b'])
    """
    if encoding.lower() in ("utf-8", "utf8"):
        # A sequence that is cut off ends before the line end, so this is the same as line by line, and faster.
        return data.decode("utf-8", "replace").removeprefix("\ufeff").split("\n")
    if not by_line(encoding):
        return data.decode(encoding, "replace").removeprefix("\ufeff").split("\n")
    lines = [line.decode(encoding, "replace") for line in data.split(b"\n")]
    lines[0] = lines[0].removeprefix("\ufeff")
    return lines


def id_lines(data: bytes, encoding: str) -> list[str]:
    """One id per line; only a line end ends one, of any system, whatever other characters an id holds.

    >>> id_lines("a\\u2028b\\r\\nc\\rd\\n".encode(), "utf-8") == ["a\\u2028b", "c", "d"]
    True
    """
    lines = re.split("\r\n|\r|\n", "\n".join(lines_of(data, encoding)))
    return lines[:-1] if lines[-1] == "" else lines
