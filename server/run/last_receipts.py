"""Each platform's last receipt over all runs: shown to it when the next run begins, so a ledger that went back is noticed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from shared.base.errors import FedfuseError, InputError, ProtocolError, StorageError
from shared.ledger.receipts import MAX_RECEIPT, RECEIPTS, LedgerReceipt, parse_receipt, read_receipts
from shared.protocol.messages import NAME

log = logging.getLogger("fedfuse.server")


class LastReceipts:
    """One small file a platform.

    It is replaced as a whole and not synced: a power cut may take the last ones, and any head of the ledger shows an older copy
    that was made before it.

    Args:
        folder: Made when the first receipt comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, platform: str) -> str:
        """The text of a platform's last receipt; empty where there is none that can be read."""
        try:
            if not NAME.fullmatch(platform):
                return ""
            with (self._folder / f"{platform}.json").open("rb") as file:
                text = file.read(MAX_RECEIPT + 1).decode("ascii").strip()
            return text if parse_receipt(text).platform == platform else ""
        except (OSError, ValueError, ProtocolError):
            return ""

    def put(self, receipt: LedgerReceipt) -> None:
        """Keep it in the place of the one before.

        Raises:
            StorageError: it cannot be written.
        """
        path = self._folder / f"{receipt.platform}.json"
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft.write_text(receipt.text() + "\n", encoding="ascii")
            draft.replace(path)
        except OSError as error:
            raise StorageError(f"a receipt cannot be written ({error.strerror})", where=str(path)) from None

    def gather(self, runs: Path) -> None:
        """Begin with what the runs' own receipts say, where there is no folder yet: after an upgrade, say.

        Args:
            runs: Folder of the runs' folders; the newest file counts.
        """
        if self._folder.exists():
            return
        found: dict[str, LedgerReceipt] = {}
        for path in sorted(runs.glob(f"*/{RECEIPTS}"), key=lambda one: one.stat().st_mtime):
            try:
                found |= {receipt.platform: receipt for receipt in read_receipts(path)}
            except (InputError, StorageError) as error:
                log.warning("%s: %s", path, error.brief)
        try:
            for receipt in found.values():
                self.put(receipt)
        except FedfuseError as error:
            log.warning("%s", error.brief)
