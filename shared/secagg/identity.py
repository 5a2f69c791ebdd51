"""Who says so: Ed25519 signatures (RFC 8032) by a platform's long-lived key, over digests that say what they are for."""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = 64
PUBLIC = 32
DIGEST = 32


def digest_of(purpose: str, *parts: bytes) -> bytes:
    """SHA-256 of a purpose and parts, each with its length, so that no two lists of parts have the same text.

    >>> digest_of("a", b"bc") == digest_of("ab", b"c")
    False
    """
    sha = hashlib.sha256(b"fedfuse secure sum 2")
    for part in (purpose.encode(), *parts):
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.digest()


class Identity:
    """A platform's signing key. Its secret is in neither `repr` nor any message."""

    def __init__(self, secret: bytes) -> None:
        """Take the key's 32 secret bytes."""
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()[:16]}...)"

    def sign(self, digest: bytes) -> bytes:
        """A signature, 64 bytes, of a digest made by `digest_of`. The same digest has the same signature."""
        return self._key.sign(digest)


def signed_by(public: bytes, signature: bytes, digest: bytes) -> bool:
    """Whether the owner of `public` signed that digest."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, digest)
    except (InvalidSignature, ValueError):
        return False
    return True
