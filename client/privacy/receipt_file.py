"""The coordinator's signed receipts of this platform's answers, as they come back with its next request, and what they prove.

A receipt holds a head of the ledger with this platform's own signature. So whoever shows one, and be it a stranger, proves that
the ledger had that line once. A ledger without it was put back from an older copy, or cut: what was spent since would be spent
again, so nothing is answered from then on.
"""

from __future__ import annotations

import logging
import os
from base64 import b64decode
from pathlib import Path

from client.privacy.ledger_writer import LedgerWriter
from shared.base.errors import FedfuseError, PrivacyError, ProtocolError
from shared.ledger.format import Ledger
from shared.ledger.reading import read_ledger
from shared.ledger.receipts import MAX_RECEIPT, RECEIPTS, parse_receipt

log = logging.getLogger("fedfuse.worker")


class LedgerWentBack(PrivacyError):
    """The ledger lacks a line that this platform signed once."""


def require_whole_ledger(text: str, ledger: Ledger, *, path: Path) -> None:
    """Check a ledger against a receipt, from wherever it comes. A text that proves nothing is passed over.

    Args:
        text: A receipt's line; may be empty.
        ledger: That of `path`. Others in its folder count, too: version 0.2.0 began one for a new budget beside the old.

    Raises:
        LedgerWentBack: this platform's identity signed a head that is in none of them.
    """
    try:
        receipt = parse_receipt(text)
    except ProtocolError:
        return
    if not ledger.identity or not receipt.head_signed_by(b64decode(ledger.identity)) or _holds(ledger, receipt.ledger):
        return
    for other in sorted(path.parent.glob("*.jsonl")):
        try:
            if other != path and _holds(read_ledger(other), receipt.ledger):
                return
        except FedfuseError:
            continue  # no ledger, or a damaged one, which holds nothing
    raise LedgerWentBack(
        f"this ledger lacks a line that this platform has signed, for an answer in run {receipt.run}: "
        "an older copy was put back, or its end was cut off",
        where=str(path),
        do="put the newest copy back; where there is none, what was spent since is not known, and this identity must not go on "
        "(docs/operating.md, 'A ledger that went back')",
    )


class ReceiptFile:
    """`receipts.jsonl` in the platform's state folder, readable by its owner alone.

    With it a platform shows an auditor what its coordinator has acknowledged. The receipt of a run's last answer comes back
    with the next run; the published model holds its head.

    Args:
        coordinator: The coordinator's pinned Ed25519 key, 32 bytes; None where none is pinned, and nothing is kept.
    """

    def __init__(self, state: Path, *, platform: str, coordinator: bytes | None) -> None:
        self._path, self._platform, self._coordinator = state / RECEIPTS, platform, coordinator
        self._last, self._held = "", ""

    def require_whole(self, text: str, ledger: LedgerWriter) -> None:
        """Check the ledger against a receipt that came with a request, before the request is answered.

        A receipt that shows the ledger to be an older copy is kept: a worker that is started again must not forget it.

        Raises:
            LedgerWentBack: as `require_whole_ledger`.
        """
        if not text or text == self._held:
            return
        try:
            require_whole_ledger(text, ledger.ledger, path=ledger.path)
        except LedgerWentBack:
            self._append(text)
            raise
        self._held = text

    def require_last(self, ledger: LedgerWriter) -> None:
        """Check the ledger against the last receipt that was kept.

        Raises:
            LedgerWentBack: as `require_whole_ledger`.
        """
        require_whole_ledger(last_receipt(self._path), ledger.ledger, path=ledger.path)

    def keep(self, text: str, ledger: LedgerWriter) -> None:
        """Append a receipt that the pinned coordinator signed for a line of this ledger; anything else is logged and left out."""
        if not text or text == self._last or self._coordinator is None:
            return
        try:
            receipt = parse_receipt(text)
        except ProtocolError as error:
            log.warning("a receipt of the coordinator is left out: %s", error.found)
            return
        ours = receipt.platform == self._platform and ledger.holds(receipt.ledger)
        if not ours or b64decode(receipt.coordinator) != self._coordinator or not receipt.vouched:
            log.warning("a receipt of the coordinator is left out: it is not its own, or of no line of this ledger")
            return
        self._append(text)

    def _append(self, text: str) -> None:
        try:
            if self._last == "" and self._path.exists() and text.encode("ascii") in self._path.read_bytes().splitlines():
                self._last = text
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(text.encode("ascii") + b"\n")
        except OSError as error:
            # A receipt is for the platform's own good; an answer does not wait for it.
            log.warning("a receipt of the coordinator could not be kept: %s", error.strerror)
            return
        self._last = text


def last_receipt(path: Path) -> str:
    """The last whole line of a file of receipts; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2 * MAX_RECEIPT))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return ""
    return lines[-1].decode("ascii", errors="replace") if lines else ""


def _holds(ledger: Ledger, head: str) -> bool:
    return head == ledger.header.hash or any(line.hash == head for line in reversed(ledger.lines))
