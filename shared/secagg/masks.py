"""Masks: streams of uint32 words that are added to a vector, and that nobody can tell from random without the key.

Addition wraps modulo 2**32, and 2**b divides 2**32, so sums are reduced to b bits once, at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from shared.base.errors import ProtocolError

KEY = 32
"""Bytes of a key, private or public, and of a seed."""
PART = 1 << 15
"""Words of a vector that are worked on at a time: they stay in a core's own cache."""
_ZEROS = memoryview(bytes(4 * PART))
_TOGETHER = 64
_P = 2**255 - 19
_SMALL = frozenset(
    value.to_bytes(32, "little")
    for low in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
        _P,
        _P + 1,
    )
    for value in (low, low | 1 << 255)
)
"""Montgomery u-coordinates of the points of order 1, 2, 4 and 8 on Curve25519 and its twist, in every encoding: also above p, and
with the highest bit set, which X25519 ignores."""
_START = modes.CTR(bytes(16))
"""Every key makes one stream, once, so the counter may begin at zero."""


@dataclass(frozen=True, kw_only=True)
class MaskFrame:
    """What a mask is for: a round (from 1), a vector of `length` words of `bits` bits, and the question that it answers.

    It enters the derivation of every key, so a platform that was asked anything else than the others shares no mask with them,
    and its vector stays hidden.

    Args:
        question: Digest of everything that the vector depends on and the coordinator chooses (`shared.protocol.question`), 32
        bytes.
    """

    round: int
    length: int
    bits: int
    question: bytes

    def __post_init__(self) -> None:
        if len(self.question) != KEY:
            raise ProtocolError(f"a question under {len(self.question)} bytes of hash")

    def pair(self, one: int, other: int) -> bytes:
        """Names the mask of two platforms: the one of the lower number adds it, the other takes it away."""
        ends = struct.pack("<II", min(one, other), max(one, other))
        return b"pair" + self._numbers() + ends + self.question

    def self(self, own: int) -> bytes:
        """Names the mask that a platform adds for itself."""
        return b"self" + self._numbers() + struct.pack("<I", own) + self.question

    def _numbers(self) -> bytes:
        return struct.pack("<III", self.round, self.length, self.bits)


def small_order(keys: bytes) -> list[int]:
    """Places of those X25519 public keys, 32 bytes each, with which every platform agrees on the same secret: zero.

    A private key is a multiple of 8, the cofactor, so these are exactly the points whose order divides 8 (RFC 7748, section
    6.1). A look at a list takes a fiftieth of the time of an exchange.

    >>> small_order(bytes([9]) + bytes(31) + bytes(32))
    [1]
    """
    return [at // KEY for at in range(0, len(keys), KEY) if keys[at : at + KEY] in _SMALL]


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


class Masks:
    """Several keys' streams (AES-256 in counter mode), which are added to a vector together, part by part.

    Part by part, because a part of the vector stays in a core's own cache while all streams are added to it.

    Args:
        keys: Each with whether its stream is taken away instead.
    """

    def __init__(self, keys: Iterable[tuple[bytes, bool]]) -> None:
        self._streams = [(Cipher(algorithms.AES256(key), _START).encryptor(), subtract) for key, subtract in keys]
        self._buffer = np.empty(4 * PART + 16, np.uint8)

    def add(self, part: NDArray[np.uint32]) -> None:
        """Add the next `len(part)` words of every stream to `part` in place; `PART` at most, fewer only at the end."""
        zeros, words = _ZEROS[: 4 * len(part)], self._buffer[: 4 * len(part)].view("<u4")
        for stream, subtract in self._streams:
            stream.update_into(zeros, self._buffer.data)
            if subtract:
                np.subtract(part, words, out=part)
            else:
                np.add(part, words, out=part)


def add_masks(total: NDArray[np.uint32], keys: Iterable[tuple[bytes, bool]]) -> None:
    """Add each key's stream to the whole of `total` in place, or take it away.

    Args:
        keys: Each with whether it is taken away.

    >>> total = np.arange(5, dtype=np.uint32)
    >>> add_masks(total, [(bytes(32), False)])
    >>> total[:2].tolist()  # the counter mode of zeros under the key of zeros begins dc95c078 a2408989
    [2025887196, 2307473571]
    >>> add_masks(total, [(bytes(32), True)])
    >>> total.tolist()
    [0, 1, 2, 3, 4]
    """
    waiting = iter(keys)
    while some := list(islice(waiting, _TOGETHER)):
        masks = Masks(some)
        for start in range(0, len(total), PART):
            masks.add(total[start : start + PART])
