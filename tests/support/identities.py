"""The identity that `fedfuse init client` makes, for platforms that tests set up by hand."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_KEY = Ed25519PrivateKey.from_private_bytes(b"i" * 32)
"""Always the same, so that two platforms of a test differ by nothing but what they are compared in."""


def with_identity(state: Path) -> Path:
    """The state folder, with an identity key in it."""
    path = state / "identity.key"
    if not path.exists():
        state.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return state
