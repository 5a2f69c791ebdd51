"""The errors that a person can meet: what was found, where, and what to do.

A `FedfuseError` is printed as one clear message with its exit code and no traceback; any
other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import shlex
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes of the `fedfuse` command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_INPUT = 3
    PRIVACY = 4
    STORAGE = 5
    REFUSED = 6
    INCOMPLETE = 7
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """What it says, in the words of `fedfuse --help`."""
        return _MEANINGS[self.value]


_MEANINGS = {
    0: "done",
    1: "failed",
    2: "wrong options",
    3: "a file or value cannot be used",
    4: "a privacy guarantee would not hold",
    5: "a file cannot be written or read",
    6: "refused",
    7: "ended incomplete: not all rounds that were asked for count",
    130: "stopped",
}


class FedfuseError(Exception):
    """Base of every error that is the reader's to mend.

    Args:
        found: What was found, in one clause ("column 'userID' does not exist").
        where: File, key, URL or platform in which it was found; empty when there is none.
        do: What to do about it ("expected one of: user, item"). It may name what is there, so it is for the person alone.
        quote: Words of another library or of a file, which may hold data; likewise.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, found: str, *, where: str = "", do: str = "", quote: str = "") -> None:
        self.found, self.where, self.do, self.quote = found, where, do, quote
        lines = (found, quote and f"  it says: {quote}", where and f"  where: {where}", do and f"  do: {do}")
        super().__init__("\n".join(line for line in lines if line))

    @property
    def brief(self) -> str:
        """What a log may hold: our own words and a place, nothing quoted from data."""
        return f"{self.found} ({self.where})" if self.where else self.found


class InputError(FedfuseError):
    """A file, a value or an option given by a person cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class PrivacyError(FedfuseError):
    """A privacy guarantee would not hold; raised instead of ever going on."""

    exit_code = ExitCode.PRIVACY


class BudgetExceeded(PrivacyError):
    """The next release would spend more than the platform's budget."""


class NoisyPlan(PrivacyError):
    """The planned update would be noise, so that its privacy would be spent for nothing."""


class StorageError(FedfuseError):
    """A file could not be written or read back whole (disk full, damaged, locked)."""

    exit_code = ExitCode.STORAGE


class ProtocolError(FedfuseError):
    """Another party sent something that this side does not accept."""


class OutOfOrder(ProtocolError):
    """A round was asked for that was answered long ago, or that cannot be next."""


class UnknownPeer(ProtocolError):
    """A secure sum is with a platform that this one's people have not written down, or know by another identity."""


def shell_word(what: object) -> str:
    """A path as one word of a command that somebody copies.

    >>> shell_word("coordinator"), shell_word("/srv/two words")
    ('coordinator', "'/srv/two words'")
    """
    return shlex.quote(str(what))
