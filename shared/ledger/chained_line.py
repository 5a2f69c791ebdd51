"""Chained lines: canonical JSON, each with the SHA-256 of itself and of the line before. Ledgers and operators' logs are such."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

GENESIS = "0" * 64
"""What the first line names as the hash of the line before it."""

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==")
_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, check_circular=False).encode


class UnreadableLine(ValueError):
    """This is no line of a chain."""


class AlteredLine(ValueError):
    """The line was altered."""


def canonical_json(values: dict[str, Any]) -> bytes:
    r"""Canonical JSON: sorted keys, no spaces, ASCII, shortest floats; one text per value.

    >>> canonical_json({"b": 1.0, "a": "ü"})
    b'{"a":"\\u00fc","b":1.0}'
    """
    return _ENCODE(values).encode("ascii")


def seal_values(values: dict[str, Any]) -> tuple[str, bytes]:
    """The hash of a line with these values, `signature` included, and the bytes to write, newline and all."""
    digest = hashlib.sha256(canonical_json(values)).hexdigest()
    return digest, canonical_json({**values, "hash": digest}) + b"\n"


def open_line(line: bytes) -> tuple[dict[str, Any], bytes]:
    """The values of a line (without its newline), its hash checked, and what is signed of it: all but hash and signature.

    Nothing but canonical JSON with a true hash gets through. Whether the signature is true, and whether the line follows the one
    before it, is the reader's to check.

    Raises:
        UnreadableLine: it is none.
        AlteredLine: its hash is not the hash of its content.
    """
    try:
        values = _DECODE(line.decode("ascii"))
    except (ValueError, RecursionError):
        raise UnreadableLine("not JSON") from None
    if not isinstance(values, dict) or "hash" not in values:
        raise UnreadableLine("not a JSON object with a hash")
    try:
        # Comparing the text also refuses doubled keys, other spellings of a number, and spaces.
        if canonical_json(values) != line:
            raise UnreadableLine("not canonical JSON")
    except UnreadableLine:
        raise
    except (ValueError, RecursionError):
        raise UnreadableLine("values that no line holds") from None
    digest = _text(values, "hash", _HASH)
    # Canonical text without a field is canonical text: neither is ever the last one.
    sealed = line.replace(b'"hash":"%b",' % digest.encode(), b"", 1)
    if digest != hashlib.sha256(sealed).hexdigest():
        raise AlteredLine("the line was altered: its hash is not the hash of its content")
    if "signature" not in values:
        return values, sealed
    signature = _text(values, "signature", _SIGNATURE)
    return values, sealed.replace(b'"signature":"%b",' % signature.encode(), b"", 1)


def _text(values: dict[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = values[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UnreadableLine(f"{name} is {value!r:.100}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODE = json.JSONDecoder(parse_constant=_no_constant).decode
