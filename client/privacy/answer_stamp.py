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
        ledger: Hash of the charge that paid for it, in hex; empty where no row took part in it.
        seconds: From the question to the answer, as `Pace` lets it be said.
    """

    epsilon: float
    ledger: str
    seconds: float

    @classmethod
    def now(cls, ledger: LedgerWriter, pace: Pace, *, began: float, charge: str) -> AnswerStamp:
        """The stamp of an answer that is ready now.

        Args:
            began: When the question came (`time.monotonic`).
            charge: Hash of the charge that paid for it, or nothing.
        """
        return cls(epsilon=ledger.epsilon, ledger=charge, seconds=pace.of(time.monotonic() - began))
