"""What every answer made from rows says of the platform: what was spent by then, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass

from client.privacy.answer_timing import Pace
from client.privacy.ledger_writer import LedgerWriter


@dataclass(frozen=True, kw_only=True)
class AnswerStamp:
    """Kept with the answer, so that the same question gets the same one.

    Args:
        epsilon: Spent by the platform, this answer's charge included.
        ledger: SHA-256 of its ledger's last line, in hex.
        seconds: From the question to the answer, as `Pace` lets it be said.
    """

    epsilon: float
    ledger: str
    seconds: float

    @classmethod
    def now(cls, ledger: LedgerWriter, pace: Pace, *, began: float) -> AnswerStamp:
        """The stamp of an answer that is ready now.

        Args:
            began: When the question came (`time.monotonic`).
        """
        return cls(epsilon=ledger.epsilon, ledger=ledger.head, seconds=pace.of(time.monotonic() - began))
