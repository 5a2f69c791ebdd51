"""Who published a model: an Ed25519 key pair (RFC 8032), its files, and signatures over manifests.

The private key stays with the coordinator in one file that only its owner may read. The public key is what a puller is
given once, by a way that it trusts (`fedfuse pull URL --trust key.pub`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from shared.durable import write_whole
from shared.errors import InputError, ProtocolError, StorageError

_DOMAIN = b"fedfuse model manifest\n"
"""Signed before the content, so that a signature for another purpose can never pass as one of these."""
_MAX_KEY = 1 << 14


class Untrusted(ProtocolError):
    """Who published a model, or that it is the newest one, is not proven."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key, 32 bytes."""

    raw: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the 32 bytes, in hex: how a manifest names the key, and how people compare keys."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Signer:
    """A private key that is ready to sign."""

    _key: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> PublicKey:
        """The key that checks its signatures."""
        return PublicKey(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, content: bytes) -> str:
        """The signature of `content`, base64. The same content and key always give the same one."""
        return base64.b64encode(self._key.sign(_DOMAIN + content)).decode("ascii")


def make_key_pair(private: Path, public: Path) -> PublicKey:
    """Make a new key pair: `private` for its owner alone (0600), `public` to hand out (0644), both PEM.

    Raises:
        InputError: one of the files is there already; a key is never written over.
        StorageError: they cannot be written.
    """
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise InputError("a key is there already", where=str(path), do="use it, or name another file; keys are not replaced")
    key = Ed25519PrivateKey.generate()
    write_whole(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    write_whole(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return Signer(key).public


def load_signer(path: Path) -> Signer:
    """The private key in a file.

    Raises:
        InputError: it is not an Ed25519 private key in PEM, or it needs a password.
        StorageError: others than its owner may read it, or it cannot be read.
    """
    data = _read(path, private=True)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's own words may quote what it read.
        raise InputError(
            "is not a private key in PEM, or is locked by a password", where=str(path), do="name the coordinator's signing key"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("is a private key, but not an Ed25519 one", where=str(path), do="name the coordinator's signing key")
    return Signer(key)


def load_trusted(path: Path) -> PublicKey:
    """The public key in a file.

    Raises:
        InputError: it is not an Ed25519 public key in PEM.
        StorageError: it cannot be read.
    """
    data = _read(path, private=False)
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        secret = b"PRIVATE KEY" in data
        raise InputError(
            "is a private key" if secret else "is not a public key in PEM",
            where=str(path),
            do="name the public key; the private one stays with the coordinator"
            if secret
            else "name the file that the coordinator gave out",
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("is a public key, but not an Ed25519 one", where=str(path), do="name the coordinator's model key")
    return PublicKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def require_signature(content: bytes, signature: str, signer: str, trusted: Iterable[PublicKey], *, where: str) -> PublicKey:
    """The trusted key that signed `content`.

    Args:
        signature: Base64, as `Signer.sign` gives it; '' for none.
        signer: Fingerprint that the content names. Only a hint for the message: every trusted key is tried.

    Guarantees: returns only if one of `trusted` made this very signature over this very content (RFC 8032, 5.1.7).

    Raises:
        Untrusted: there is no signature, or none of the keys made it.
    """
    if not signature:
        raise Untrusted("nobody has signed this model", where=where, do="pull a published one, or say --unsigned")
    keys = tuple(trusted)
    try:
        raw = base64.b64decode(signature, validate=True)
    except ValueError:
        raise Untrusted("the signature is not base64", where=where, do="pull from elsewhere") from None
    for key in keys:
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(raw, _DOMAIN + content)
        except InvalidSignature:
            continue
        return key
    if any(key.fingerprint == signer for key in keys):
        raise Untrusted(
            "the manifest was changed after it was signed", where=where, do="pull from elsewhere, and tell who runs the registry"
        )
    raise Untrusted(
        f"the model is signed by key {signer[:16]}, not by {' or '.join(key.fingerprint[:16] for key in keys)}",
        where=where,
        do="ask the coordinator, by a way that you trust, whether its key has changed",
    )


def _read(path: Path, *, private: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise InputError("is not a file", where=str(path), do="name a key file")
            if private and state.st_mode & 0o077:
                raise StorageError(
                    f"others may read this private key (mode {stat.S_IMODE(state.st_mode):04o})",
                    where=str(path),
                    do=f"chmod 600 {path}, and make a new key if somebody may have read it",
                )
            data = file.read(_MAX_KEY + 1)
    except OSError as error:
        raise StorageError(
            f"the key cannot be read ({error.strerror})", where=str(path), do="check the path and its permissions"
        ) from None
    if len(data) > _MAX_KEY:
        raise InputError(f"is larger than {_MAX_KEY} bytes, so it is no key", where=str(path), do="name a key file")
    return data
