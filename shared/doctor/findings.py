"""One line of a checkup: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.base.errors import ExitCode, FedfuseError


class Level(StrEnum):
    """How a thing is: nothing to do; to be looked at; in the way."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line.

    Args:
        what: The thing that was looked at.
        found: How it is.
        cure: What to do; '' where there is nothing to do.
    """

    what: str
    level: Level
    found: str
    cure: str = ""

    def to_json(self) -> dict[str, str]:
        """For machines."""
        return {"what": self.what, "level": str(self.level), "found": self.found, "cure": self.cure}


def fine(what: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(what=what, level=Level.OK, found=found)


def warning(what: str, found: str, cure: str) -> Finding:
    """To be looked at; it keeps nothing from working."""
    return Finding(what=what, level=Level.WARNING, found=found, cure=cure)


def fault(what: str, found: str, cure: str) -> Finding:
    """In the way of something."""
    return Finding(what=what, level=Level.ERROR, found=found, cure=cure)


def fault_of(what: str, error: FedfuseError) -> Finding:
    """What an error says, as a finding."""
    return fault(what, error.brief, error.do)


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The whole checkup, for machines."""
    return {"ok": exit_code(findings) == ExitCode.OK, "findings": [one.to_json() for one in findings]}


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """OK where nothing is in the way, warnings or not; else FAILED."""
    return ExitCode.FAILED if any(one.level is Level.ERROR for one in findings) else ExitCode.OK
