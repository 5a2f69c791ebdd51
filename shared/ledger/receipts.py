"""Receipts: what the coordinator saw of each answer, signed by it, for whoever audits the platform's ledger.

A receipt says which answer of which platform came in (`left`), and the head of the platform's ledger that came with it, which the
platform signed. So it binds both: the platform cannot cut its ledger before that head or tell another history, and the
coordinator cannot make up a head that the platform never had.

A receipt file is canonical JSON lines. The coordinator appends to its own in the run's folder; a platform keeps those that
come back with the next request.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.base.errors import InputError, ProtocolError, StorageError
from shared.base.regular_files import open_regular
from shared.ledger.chained_line import canonical_json
from shared.protocol.messages import NAME
from shared.secagg.identity import Identity, digest_of, signed_by

RECEIPTS = "receipts.jsonl"
MAX_RECEIPT = 2048
MAX_RECEIPTS = 4_000_000

_HASH = re.compile(r"[0-9a-f]{64}")
_MAYBE = re.compile(r"[0-9a-f]{64}|")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{86}==|")
_KEY = re.compile(r"[A-Za-z0-9+/]{43}=|")
_KIND = re.compile(r"[a-z]{1,32}")
_PATTERNS = {
    "platform": NAME,
    "run": NAME,
    "kind": _KIND,
    "left": _MAYBE,
    "ledger": _HASH,
    "head_signature": _SIGNATURE,
    "coordinator": _KEY,
    "signature": _SIGNATURE,
}


@dataclass(frozen=True, kw_only=True)
class LedgerReceipt:
    """One answer that came in.

    Args:
        run, round, kind: Of the answer.
        left: SHA-256 of what it released, hex (`shared/ledger/release_digest.py`); empty for exact metrics of a simulation.
        ledger: Head of the platform's ledger that came with it, hex.
        head_signature: The platform's Ed25519 signature of that head, base64; empty where it sent none.
        coordinator: Ed25519 public key that signs this receipt, base64; empty in a simulation, which has none.
        signature: By that key, base64.

    Raises:
        InputError: a field is not as it must be.
    """

    platform: str
    run: str
    round: int
    kind: str
    left: str
    ledger: str
    head_signature: str = ""
    coordinator: str = ""
    signature: str = ""

    def __post_init__(self) -> None:
        for name, pattern in _PATTERNS.items():
            value = getattr(self, name)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise InputError(f"{name} of a receipt is {value!r:.100}", do="take the file from the coordinator's run folder")
        if isinstance(self.round, bool) or not isinstance(self.round, int) or not 0 <= self.round < 1 << 53:
            raise InputError(f"round of a receipt is {self.round!r:.60}", do="take the file from the coordinator's run folder")

    def signed(self, key: Ed25519PrivateKey) -> LedgerReceipt:
        """The same with the signature of `key`."""
        public = b64encode(key.public_key().public_bytes_raw()).decode("ascii")
        named = replace(self, coordinator=public, signature="")
        return replace(named, signature=b64encode(key.sign(named._digest())).decode("ascii"))

    @property
    def vouched(self) -> bool:
        """Whether the coordinator that it names signed it."""
        return bool(self.coordinator and self.signature) and signed_by(
            b64decode(self.coordinator), b64decode(self.signature), replace(self, signature="")._digest()
        )

    def head_signed_by(self, identity: bytes) -> bool:
        """Whether the owner of that identity signed the head."""
        return bool(self.head_signature) and signed_by(identity, b64decode(self.head_signature), head_digest(self.ledger))

    def text(self) -> str:
        """One line of ASCII, without a newline."""
        return canonical_json({part.name: getattr(self, part.name) for part in fields(self)}).decode("ascii")

    def _digest(self) -> bytes:
        return digest_of("ledger receipt", self.text().encode("ascii"))


def head_digest(head: str) -> bytes:
    """What a platform signs of its ledger's head, which goes out with an answer."""
    return digest_of("ledger head", bytes.fromhex(head))


def sign_head(identity: Identity, head: str) -> str:
    """The platform's signature of a head, base64."""
    return b64encode(identity.sign(head_digest(head))).decode("ascii")


def parse_receipt(text: str) -> LedgerReceipt:
    """The receipt in a line that came from elsewhere; no signature is looked at.

    Raises:
        ProtocolError: it is none.
    """
    try:
        if len(text) > MAX_RECEIPT:
            raise ValueError
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {part.name for part in fields(LedgerReceipt)}:
            raise ValueError
        made: dict[str, Any] = values
        receipt = LedgerReceipt(**made)
        if receipt.text() != text:
            raise ValueError
        return receipt
    except (ValueError, TypeError, RecursionError, InputError):
        raise ProtocolError("this is no receipt of a ledger") from None


def read_receipts(path: Path) -> Iterator[LedgerReceipt]:
    """The receipts in a file, in order. A last line that a crash tore is none.

    Raises:
        InputError: it holds something else.
        StorageError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            for number in range(1, MAX_RECEIPTS + 2):
                line = file.readline(MAX_RECEIPT + 2)
                if not line:
                    return
                if not line.endswith(b"\n") and len(line) <= MAX_RECEIPT:
                    return
                try:
                    if number > MAX_RECEIPTS:
                        raise ProtocolError(f"more than {MAX_RECEIPTS} receipts")
                    yield parse_receipt(line.decode("ascii", errors="replace").removesuffix("\n"))
                except ProtocolError as error:
                    raise InputError(
                        error.found, where=f"{path}, line {number}", do="take the file from the coordinator's run folder"
                    ) from None
    except OSError as error:
        raise StorageError(f"the receipts cannot be read ({error.strerror})", where=str(path)) from None
