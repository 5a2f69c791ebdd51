"""The coordinator's platforms as witnesses of how far its operators' log had come.

With its certificate authorities (`shared/protocol/authorities.py`) the coordinator hands out the head of its log, sealed: a
platform keeps it, cannot read it, and shows it the next time it asks. A coordinator that was restored from a backup learns so
that there was more. What is sealed opens to the federation's key alone, so nobody can make a head up, and nobody else learns
when operators act. The answer is signed over the nonce: nobody in between can have a platform forget what it keeps.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared.secagg.identity import digest_of, signed_by

HEADER = "fedfuse-log"
"""In a question for authorities: the sealed head that the platform keeps."""
LONGEST = 1024
"""Characters of a sealed head."""
_SIZE = 256
"""Bytes of every head before it is sealed: its length says nothing."""
_NONCE, _PURPOSE = 12, b"fedfuse operators' log head"


def seal_head(head: bytes, key: Ed25519PrivateKey) -> str:
    """A head as a platform keeps it (ChaCha20-Poly1305, RFC 8439, under a key that is derived from the federation's, RFC 5869).

    Args:
        head: JSON, at most 256 bytes.
    """
    assert len(head) <= _SIZE
    nonce = os.urandom(_NONCE)
    return b64encode(nonce + _cipher(key).encrypt(nonce, head.ljust(_SIZE), _PURPOSE)).decode("ascii")


def open_head(sealed: str, key: Ed25519PrivateKey) -> bytes | None:
    """What `seal_head` sealed with that key; None where it did not."""
    try:
        if len(sealed) > LONGEST:
            return None
        data = b64decode(sealed, validate=True)
        return _cipher(key).decrypt(data[:_NONCE], data[_NONCE:], _PURPOSE).rstrip()
    except (ValueError, InvalidTag):
        return None


def witness_answer(sealed: str, *, nonce: str, key: Ed25519PrivateKey) -> dict[str, str]:
    """What is added to an answer about authorities, for the platform to keep."""
    return {"log": sealed, "log_signature": b64encode(key.sign(_digest(sealed, nonce))).decode("ascii")}


def proven_witness(text: bytes, *, nonce: str, coordinator: bytes) -> str:
    """The sealed head in an answer; '' where there is none that the coordinator signed for this nonce.

    Args:
        coordinator: The pinned Ed25519 key, 32 bytes.
    """
    try:
        values = json.loads(text)
        sealed, signature = values["log"], b64decode(values["log_signature"], validate=True)
        held = isinstance(sealed, str) and len(sealed) <= LONGEST and signed_by(coordinator, signature, _digest(sealed, nonce))
        return sealed if held else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _cipher(key: Ed25519PrivateKey) -> ChaCha20Poly1305:
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_PURPOSE).derive(key.private_bytes_raw())
    return ChaCha20Poly1305(derived)


def _digest(sealed: str, nonce: str) -> bytes:
    return digest_of("operators' log head", bytes.fromhex(nonce), sealed.encode("utf-8"))
