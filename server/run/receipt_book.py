"""The coordinator's receipts of a run: one for every answer that was made from rows, signed, as it comes in."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from server.run.last_receipts import LastReceipts
from shared.base.errors import InputError, ProtocolError, StorageError
from shared.ledger.receipts import RECEIPTS, LedgerReceipt, read_receipts
from shared.ledger.release_digest import is_release, release_digest
from shared.protocol.flower_records import answer_from
from shared.protocol.messages import Released


class ReceiptBook:
    """Appends to `receipts.jsonl` in the run's folder.

    A power cut may take the last lines; any later receipt covers them, since its head covers the whole ledger before it.

    Args:
        folder: Of the run.
        signer: The coordinator's federation key; None in a simulation.
        over_all: Each platform's last receipt over all runs; None in a simulation.
    """

    def __init__(
        self, folder: Path, *, run: str, signer: Ed25519PrivateKey | None = None, over_all: LastReceipts | None = None
    ) -> None:
        self._path, self._run, self._signer, self._over_all = folder / RECEIPTS, run, signer, over_all
        self._last: dict[str, LedgerReceipt] = {}

    def restore(self) -> None:
        """Go on with the file of a run that is resumed; what is no whole line is cut off.

        Raises:
            StorageError: it is no file of receipts.
        """
        if not self._path.exists():
            return
        try:
            self._last = {receipt.platform: receipt for receipt in read_receipts(self._path) if receipt.run == self._run}
            with self._path.open("r+b") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
        except (InputError, OSError) as error:
            raise StorageError("the run's receipts are damaged", where=str(self._path), do="move the file away") from error

    def last(self, platform: str) -> str:
        """The text of a platform's last receipt; before the first of this run an earlier run's; empty where there is none."""
        receipt = self._last.get(platform)
        if receipt is not None:
            return receipt.text()
        return "" if self._over_all is None else self._over_all.get(platform)

    def enter(self, message: Message, platform: str) -> None:
        """Write a receipt for an answer of that platform, if it is one that was made from rows.

        What cannot be used as an answer gets none; whoever reads the answer says why.

        Raises:
            StorageError: it cannot be written.
        """
        if message.has_error():
            return
        try:
            answer = answer_from(message.content)
        except ProtocolError:
            return
        if not isinstance(answer, Released) or (answer.platform, answer.run) != (platform, self._run) or not answer.ledger:
            return
        receipt = LedgerReceipt(
            platform=platform,
            run=answer.run,
            round=answer.round,
            kind=answer.kind,
            left=release_digest(answer) if is_release(answer) else "",
            ledger=answer.ledger,
            head_signature=answer.signature,
        )
        if self._signer is not None:
            receipt = receipt.signed(self._signer)
        if self._last.get(platform) == receipt:
            return  # the same answer to the same question
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "ab") as file:
                file.write(receipt.text().encode("ascii") + b"\n")
        except OSError as error:
            raise StorageError(f"a receipt cannot be written ({error.strerror})", where=str(self._path)) from None
        self._last[platform] = receipt
        if self._over_all is not None:
            self._over_all.put(receipt)
