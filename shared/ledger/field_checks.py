"""One field of a ledger line, checked: it is what a ledger would have written, or the line is no ledger line."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Any, NoReturn

from shared.base.errors import PrivacyError, StorageError

TIME = "%Y-%m-%dT%H:%M:%SZ"


def number(values: dict[str, Any], name: str, where: str, *, infinite: bool = False) -> float:
    """A float, finite and not negative; or the word "inf" where it may be infinite."""
    value = values[name]
    if infinite and value == "inf":
        return math.inf
    if not isinstance(value, float) or not math.isfinite(value) or value < 0:
        damaged(f"{name} is {value!r:.60}", where)
    return value


def whole_number(values: dict[str, Any], name: str, where: str, *, at_most: int = 1 << 62) -> int:
    """A whole number from 0 to `at_most`."""
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= at_most:
        damaged(f"{name} is {value!r:.60}", where)
    return value


def matching(values: dict[str, Any], name: str, pattern: re.Pattern[str], where: str) -> str:
    """A text of a pattern."""
    value = values[name]
    if not isinstance(value, str) or not pattern.fullmatch(value):
        damaged(f"{name} is {value!r:.100}", where)
    return value


def moment(values: dict[str, Any], name: str, where: str) -> str:
    """A time as `TIME` writes it."""
    value = values[name]
    try:
        if datetime.strptime(value, TIME).strftime(TIME) != value:
            damaged(f"{name} is {value!r:.60}", where)
    except (ValueError, TypeError):
        damaged(f"{name} is {value!r:.60}", where)
    return str(value)


def hold(holds: bool, otherwise: str, where: str) -> None:
    """Raise PrivacyError, the ledger was altered, unless something holds."""
    if not holds:
        raise PrivacyError(
            otherwise, where=where, do="put the newest copy that is whole back; do not release anything on an altered one"
        )


def damaged(found: str, where: str) -> NoReturn:
    """Raise StorageError: this is no ledger line."""
    raise StorageError(f"this is not a ledger line: {found}", where=where, do="put the newest copy that is whole back")
