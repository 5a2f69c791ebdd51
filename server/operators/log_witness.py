"""Has platforms keep the sealed head of the operators' log, and notices when one of them shows more than there is."""

from __future__ import annotations

import logging
import threading

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.deployment.folder import CoordinatorFolder
from server.operators.operator_log import (
    HEAD,
    LOG,
    AlteredLog,
    NotedHead,
    OperatorLog,
    head_note,
    noted_head,
    parse_head,
    read_operator_log,
)
from server.operators.restored_state import seen_note
from shared.base.atomic_files import write_whole
from shared.base.errors import StorageError
from shared.protocol.log_witness import open_head, seal_head, witness_answer

log = logging.getLogger("fedfuse.server")


class LogWitness:
    """What the gate answers to platforms about the log.

    Args:
        key: The federation's.
    """

    def __init__(self, coordinator: CoordinatorFolder, key: Ed25519PrivateKey) -> None:
        self._coordinator, self._key = coordinator, key
        self._lock = threading.Lock()
        self._stamp: tuple[tuple[int, int, int], ...] = ()
        self._log: OperatorLog | None = None
        self._sealed = ""

    def notice(self, shown: str) -> bool:
        """Note a head that the log does not account for, where `require_latest` finds it; whether the log can be read.

        Args:
            shown: What a platform kept; '' for nothing. It may come from anybody.
        """
        head = None
        if shown and (text := open_head(shown, self._key)) is not None:
            head = parse_head(text, where="the gate")
        with self._lock:
            try:
                found = self._read()
                if head is not None and not found.accounts_for(head):
                    self._note(found, head)
            except StorageError as error:
                log.error("%s", error.brief)
                return False
            return True

    def answer(self, nonce: str, shown: str) -> dict[str, str]:
        """`notice`; then the sealed head for a platform to keep, nothing while the log cannot be read."""
        return witness_answer(self._sealed, nonce=nonce, key=self._key) if self.notice(shown) else {}

    def _read(self) -> OperatorLog:
        folder = self._coordinator.operators
        try:
            states = [(folder / name).stat() for name in (LOG, HEAD)]
        except OSError as error:
            raise AlteredLog(f"the log of operators' actions is gone ({error.strerror})", where=str(folder)) from None
        stamp = tuple((state.st_ino, state.st_mtime_ns, state.st_size) for state in states)
        if self._log is None or stamp != self._stamp:
            self._log = None
            self._log = read_operator_log(folder)
            self._stamp, self._sealed = stamp, seal_head(head_note(self._log.actions[-1]), self._key)
        return self._log

    def _note(self, found: OperatorLog, head: NotedHead) -> None:
        path = seen_note(self._coordinator)
        before = noted_head(path)
        if before is None or found.accounts_for(before) or before.seq < head.seq:
            write_whole(path, head.text(), mode=0o600)
            log.error(
                "a platform keeps the head of action %d of %s, and the log ends with action %d of %s: log and list of platforms "
                "are older copies, and who was revoked since is let in. See: fedfuse log --verify",
                head.seq,
                head.time,
                found.actions[-1].seq,
                found.actions[-1].time,
            )
