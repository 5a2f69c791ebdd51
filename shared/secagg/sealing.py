"""Shares on their way through the coordinator: ChaCha20-Poly1305 (RFC 8439) under a key that only the two ends have."""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shared.base.errors import ProtocolError
from shared.secagg.masks import agree

_NONCE = bytes(12)
"""A key seals one text, ever: it is of one roster, one sender and one receiver, and a sender deals once."""
OVERHEAD = 16


def seal(own: X25519PrivateKey, other: bytes, text: bytes, *, roster: bytes, sender: int, receiver: int) -> bytes:
    """The text, sealed to the owner of the public key `other`.

    Args:
        roster: The roster's digest; together with sender and receiver it is authenticated, too.
    """
    bound = roster + struct.pack("<II", sender, receiver)
    return ChaCha20Poly1305(agree(own, other, salt=roster, info=b"seal" + bound)).encrypt(_NONCE, text, bound)


def unseal(own: X25519PrivateKey, other: bytes, sealed: bytes, *, roster: bytes, sender: int, receiver: int) -> bytes:
    """The text that the owner of the public key `other` sealed to `own`.

    Raises:
        ProtocolError: it was made by another, for another, in another run, or was changed.
    """
    bound = roster + struct.pack("<II", sender, receiver)
    try:
        return ChaCha20Poly1305(agree(own, other, salt=roster, info=b"seal" + bound)).decrypt(_NONCE, sealed, bound)
    except InvalidTag:
        raise ProtocolError(f"shares from platform {sender} that cannot be opened") from None
