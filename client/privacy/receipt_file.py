"""The coordinator's signed receipts of this platform's answers, as they come back with its next request."""

from __future__ import annotations

import logging
import os
from base64 import b64decode
from pathlib import Path

from client.privacy.ledger_writer import LedgerWriter
from shared.base.errors import ProtocolError
from shared.ledger.receipts import RECEIPTS, parse_receipt

log = logging.getLogger("fedfuse.worker")


class ReceiptFile:
    """`receipts.jsonl` in the platform's state folder, readable by its owner alone.

    With it a platform shows an auditor what its coordinator has acknowledged. The receipt of a run's last answer does not come
    back: the published model holds its head.

    Args:
        coordinator: The coordinator's pinned Ed25519 key, 32 bytes; None where none is pinned, and nothing is kept.
    """

    def __init__(self, state: Path, *, platform: str, coordinator: bytes | None) -> None:
        self._path, self._platform, self._coordinator = state / RECEIPTS, platform, coordinator
        self._last = ""

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
