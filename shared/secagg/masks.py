"""Masks: streams of uint32 words that are added to a vector, and that nobody can tell from random without the key.

Addition wraps modulo 2**32, and 2**b divides 2**32, so sums are reduced to b bits once, at the end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from shared.errors import ProtocolError

KEY = 32
"""Bytes of a key, private or public, and of a seed."""
_CHUNK = 1 << 18
"""Bytes of a stream made at a time: they stay in a core's own cache until they are added."""
_ZEROS = memoryview(bytes(_CHUNK))
_START = modes.CTR(bytes(16))
"""Every key makes one stream, once, so the counter may begin at zero."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a mask is for: a round (from 1) and a vector of `length` words of `bits` bits.

    It goes into every key, so that a platform that was told another length or width than the others shares no mask with
    them, and its vector stays hidden.
    """

    round: int
    length: int
    bits: int

    def pair(self, one: int, other: int) -> bytes:
        """Names the mask of two platforms: the one of the lower number adds it, the other takes it away."""
        return struct.pack("<4sIIIII", b"pair", self.round, self.length, self.bits, min(one, other), max(one, other))

    def self(self, own: int) -> bytes:
        """Names the mask that a platform adds for itself."""
        return struct.pack("<4sIIII", b"self", self.round, self.length, self.bits, own)


def agree(private: X25519PrivateKey, public: bytes, *, salt: bytes, info: bytes) -> bytes:
    """The key that two parties share: HKDF-SHA256 of X25519 (RFC 7748, RFC 5869).

    Args:
        salt: Digest of the session; parties of different sessions share no key.
        info: What the key is for.

    Raises:
        ProtocolError: the public key is no key, or of the few that give the same secret to everybody.
    """
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ProtocolError("a public key that is none") from None
    return derive(secret, salt=salt, info=info)


def derive(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """A key of 32 bytes from a secret (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY, salt=salt, info=info).derive(secret)


def add_mask(total: NDArray[np.uint32], key: bytes, *, subtract: bool = False) -> None:
    """Add the key's stream (AES-256 in counter mode) to `total` in place, or take it away.

    >>> total = np.arange(5, dtype=np.uint32)
    >>> add_mask(total, bytes(32))
    >>> total[:2].tolist()  # the counter mode of zeros under the key of zeros begins dc95c078 a2408989
    [2025887196, 2307473571]
    >>> add_mask(total, bytes(32), subtract=True)
    >>> total.tolist()
    [0, 1, 2, 3, 4]
    """
    stream = Cipher(algorithms.AES256(key), _START).encryptor()
    chunk = min(_CHUNK, 4 * len(total))
    buffer = np.empty(chunk + 16, np.uint8)
    words = buffer[:chunk].view("<u4")
    change = np.subtract if subtract else np.add
    for start in range(0, len(total), _CHUNK // 4):
        part = total[start : start + _CHUNK // 4]
        stream.update_into(_ZEROS[: 4 * len(part)], buffer.data)
        change(part, words[: len(part)], out=part)
